"""Simulation of a full disk."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def max_file_size(size: int) -> Iterator[None]:
    """Make writes beyond `size` bytes per file fail, as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system limits no file sizes")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
