"""Python literals in files of others, such as the header of a .npy file: parsed by one thread at a time."""

from __future__ import annotations

import threading

PARSING = threading.Lock()
"""CPython 3.11 counts the depth of the tree that it builds for all threads together, and calls what two of them make a
SystemError, "AST constructor recursion depth mismatch" (https://github.com/python/cpython/issues/106905)."""
