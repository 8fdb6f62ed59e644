"""Which pixels of a raster mean something: the one rule, applied to pixels that were read."""

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray


def nodata_as(value: float | None, dtype: str) -> float | int | None:
    """Return the nodata value as numbers of `dtype` hold it; None when they cannot, or it is not finite."""
    if value is None or not np.isfinite(value):
        return None
    kind = np.dtype(dtype)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            rounded = float(kind.type(value))
        return rounded if np.isfinite(rounded) else None
    limits = np.iinfo(kind)
    return int(value) if limits.min <= value <= limits.max and value == int(value) else None


def known(pixels: Shaped[ndarray, "b h w"], nodata: list[float | int | None]) -> Bool[ndarray, "h w"]:
    """Return which pixels are finite in every band and differ from nodata in at least one."""
    finite = np.ones(pixels.shape[1:], bool)
    if pixels.dtype.kind == "f":
        np.isfinite(pixels).all(axis=0, out=finite)
    if None in nodata:
        return finite
    present = np.zeros_like(finite)
    for band, value in zip(pixels, nodata, strict=True):
        present |= band != value
    return finite & present
