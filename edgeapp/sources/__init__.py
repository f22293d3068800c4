"""Where frames come from."""

from edgeapp.sources.files import FileSource

__all__ = ["FileSource"]
