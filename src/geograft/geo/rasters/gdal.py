"""GDAL for `raster` and `rasterout`: its options, its warnings, and what it says when it fails.

Options are read from the environment, where a user's own setting wins over the ones made here.
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rasterio._env import set_gdal_config
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

CACHE_MB = 64
"""GDAL's cache of decoded blocks, one for all threads of a process.

Two rows of blocks under a panel of `geograft.mapping.windows` fit, so that no block is decoded again for the next row
of tiles. GDAL's own default is a twentieth of the machine's memory, in every worker process.
"""

if "GDAL_CACHEMAX" not in os.environ:
    # The variable is for processes that are started from here, and read there at the first block; here that may be
    # past, for others use GDAL too. rasterio.Env would not do: its options hold in one thread.
    os.environ["GDAL_CACHEMAX"] = str(CACHE_MB)
    set_gdal_config("GDAL_CACHEMAX", CACHE_MB * 2**20)
# A JPEG that ends early is otherwise filled up with grey.
os.environ.setdefault("GDAL_ERROR_ON_LIBJPEG_WARNING", "TRUE")
# GDAL's shortcut for whole PNGs returns noise without an error when the file ends early.
os.environ.setdefault("GDAL_PNG_WHOLE_IMAGE_OPTIM", "NO")

RASTER_FAULTS = (RasterioError, CPLE_BaseError)
"""What rasterio raises when GDAL fails."""

# Warnings are switched for the whole process, so only one thread at a time may do it.
_warnings = threading.Lock()


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
