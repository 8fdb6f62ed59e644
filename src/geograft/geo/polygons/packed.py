"""Lists of outlines and of points as plain arrays, for files that need no pickle."""

from collections.abc import Sequence

import numpy as np
import shapely
from jaxtyping import Int64, UInt8
from numpy import ndarray


def packed(shapes: ndarray | Sequence[shapely.Geometry]) -> tuple[UInt8[ndarray, " bytes"], Int64[ndarray, " n"]]:
    """Return (n,) shapes as WKB, one after the other, and where each ends."""
    chunks = shapely.to_wkb(np.array(shapes, object)).tolist() if len(shapes) else []
    ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
    return np.frombuffer(b"".join(chunks), np.uint8), ends


def unpacked(content: UInt8[ndarray, " bytes"], ends: Int64[ndarray, " n"]) -> ndarray:
    """Return the (n,) shapes that `packed` packed."""
    chunks = np.empty(len(ends), object)
    view, starts = content.tobytes(), np.concatenate([[0], ends])[:-1]
    chunks[:] = [view[start:end] for start, end in zip(starts, ends, strict=True)]
    shapes: ndarray = shapely.from_wkb(chunks)
    return shapes


def strung(lists: Sequence[Sequence[Int64[ndarray, "_ 2"]]]) -> tuple[Int64[ndarray, "n 2"], Int64[ndarray, " k"]]:
    """Return the points of k lists of arrays one after the other, and where each list ends."""
    joined = [np.concatenate([np.empty((0, 2), np.int64), *arrays]) for arrays in lists]
    ends = np.cumsum([len(points) for points in joined], dtype=np.int64)
    return np.concatenate([np.empty((0, 2), np.int64), *joined]), ends


def unstrung(points: Int64[ndarray, "n 2"], ends: Int64[ndarray, " k"]) -> list[Int64[ndarray, "_ 2"]]:
    """Return the k arrays of points that `strung` strung."""
    return np.split(points, ends[:-1]) if len(ends) else []
