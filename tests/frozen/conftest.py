"""The finished program: dist/edgeapp, or the file that EDGEAPP_BINARY names."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import frozen_binary


@pytest.fixture(scope="session")
def binary() -> Path:
    """The path of the frozen program; skips where there is none, unless it must be there."""
    return frozen_binary()
