"""Features on their way to a vector file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy import ndarray
from shapely.geometry.base import BaseGeometry


@dataclass(frozen=True)
class Features:
    """Some features to write: shapes with columns of the same length."""

    shapes: Sequence[BaseGeometry] | ndarray
    columns: Mapping[str, Sequence[Any] | ndarray]
    """Numbers as arrays, so that a batch without features still states their kind; text in lists or as objects."""
