"""GDAL's decoding options, warnings and error messages, for the modules that read and write rasters.

Importing this module sets no GDAL option. In particular the size of GDAL's block cache (`GDAL_CACHEMAX`, by default 5 %
of the machine's memory in every process) is left to the host program; the command line sets it.
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

STRICT_DECODING = {
    # Otherwise GDAL fills the missing part of a truncated JPEG with grey.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",
    # GDAL's fast path for whole PNGs returns noise, without an error, for a truncated file.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
}
"""Options under which GDAL reports truncated pictures as errors."""

RASTER_ERRORS = (RasterioError, CPLE_BaseError)
"""The exceptions that rasterio raises when GDAL fails."""

# Warning filters are global to the process, so only one thread at a time may change them.
_warnings = threading.Lock()


@contextmanager
def ignore_not_georeferenced() -> Iterator[None]:
    """Ignore rasterio's warning about rasters that are not georeferenced, which Geograft accepts."""
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def raster_drivers() -> set[str]:
    """Return the names of the drivers of rasterio's GDAL."""
    with rasterio.Env() as environment:
        return set(environment.drivers())


def error_reason(error: BaseException) -> str:
    """Return the message of the original GDAL error, on one line and without a final full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = getattr(error, "errmsg", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".")


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Set GDAL's options STRICT_DECODING, except those that the user set in the environment. Takes 50 us."""
    with rasterio.Env(**{name: value for name, value in STRICT_DECODING.items() if name not in os.environ}):
        yield
