"""GDAL for `raster` and `rasterout`: its options, its warnings, and what it says when it fails.

Options are read from the environment, where a user's own setting wins over the ones made here.
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rasterio._env import get_gdal_config, set_gdal_config
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

CACHE_MB, MOST_CACHE_MB = 128, 320
"""GDAL's cache of decoded blocks, one for all threads of a process; `widen_cache` may let it grow to the second."""
_given = os.environ.get("GDAL_CACHEMAX", str(CACHE_MB))
# The default cache is a twentieth of the machine's memory in every worker process. Read once, at the first block.
os.environ.setdefault("GDAL_CACHEMAX", str(CACHE_MB))
# A JPEG that ends early is otherwise filled up with grey.
os.environ.setdefault("GDAL_ERROR_ON_LIBJPEG_WARNING", "TRUE")
# GDAL's shortcut for whole PNGs returns noise without an error when the file ends early.
os.environ.setdefault("GDAL_PNG_WHOLE_IMAGE_OPTIM", "NO")

RASTER_FAULTS = (RasterioError, CPLE_BaseError)
"""What rasterio raises when GDAL fails."""

# Warnings are switched for the whole process, so only one thread at a time may do it.
_warnings = threading.Lock()


def widen_cache(size: int) -> None:
    """Let GDAL keep `size` bytes of decoded blocks, at most MOST_CACHE_MB; never less than now.

    Holds for the whole process, all its threads and files that are open already. A user's own GDAL_CACHEMAX stays.
    """
    if _given == str(CACHE_MB):
        wanted = min(size, MOST_CACHE_MB * 2**20)
        if wanted > get_gdal_config("GDAL_CACHEMAX"):
            set_gdal_config("GDAL_CACHEMAX", wanted)


@contextmanager
def quietly() -> Iterator[None]:
    """Hold back the warning that a raster has no place on the ground: pixels are fine here."""
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def reason(error: BaseException) -> str:
    """Return what GDAL said first about a failure, on one line and without a full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = getattr(error, "errmsg", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".")
