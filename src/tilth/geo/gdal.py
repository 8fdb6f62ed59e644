"""GDAL for `raster` and `rasterout`: its options, its warnings, and what it says when it fails.

Options are read from the environment, where a user's own setting wins over the ones made here.
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

# The default cache is a twentieth of the machine's memory in every worker process.
os.environ.setdefault("GDAL_CACHEMAX", "128")
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
