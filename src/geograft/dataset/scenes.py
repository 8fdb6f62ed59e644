"""Labelled scenes, the common result of all label sources: a name, an image, a group and a reader of labels."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.legend import Legend
from geograft.memory import check_scene_size
from geograft.text import join_names

LabelReader = Callable[[Window], UInt8[ndarray, "h w"] | UInt8[ndarray, "o h w"]]
"""Returns the labels of a window of one scene: class indices, or the fraction of each output's class in 250ths; 255 if
unknown."""
Groups = Path | Mapping[str, str] | None
"""Group by scene name, or a CSV file with the columns scene and group; None if no scenes belong together."""


@dataclass(frozen=True)
class LabelledScene:
    """One image and a factory for the reader of its labels."""

    name: str
    info: ImageInfo
    group: str
    label_reader: Callable[[], LabelReader]
    """Prepares the labels of this scene; they may stay in memory as long as the reader does."""


@dataclass(frozen=True)
class LabelledScenes:
    """All scenes of a source, with the same bands and dtype."""

    legend: Legend
    scenes: tuple[LabelledScene, ...]
    notes: dict[str, str]
    """Notes on the origin of labels and images, and on repairs."""
    scale: float | None = None
    """Pixel value of full brightness, if the source defines it."""
    implicit_background: bool = False
    """Whether class 0 is everything that no label covers, so it may be absent if other classes are present."""
    fractional: bool = False
    """Whether labels are class fractions; always true for overlapping classes."""


@runtime_checkable
class LabelSource(Protocol):
    """Images and labels in a form that `geograft prepare` can read."""

    def gather(self) -> LabelledScenes:
        """Return the scenes. Reads labels and image headers, but no pixels.

        Raises:
            InputError: if images or labels cannot be used.
        """


def read_image_infos(paths: Iterable[Path]) -> tuple[ImageInfo, ...]:
    """Return the metadata of images.

    Raises:
        InputError: if an image cannot be opened, has too many pixels or a colour table, or differs from the first in
            bands or dtype.
    """
    infos = []
    for path in paths:
        with Image.open(path) as image:
            infos.append(image.info)
        check_scene_size(str(path), image.info.grid.height, image.info.grid.width)
    for info in infos:
        _check_same_format(infos[0], info)
    return tuple(infos)


def scene_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return a name per path, unique regardless of case: the stem, prefixed with the folder name if needed.

    >>> scene_names([Path("a/x.tif"), Path("b/x.tif"), Path("y.tiff_1.png")])
    ('a_x', 'b_x', 'y.tiff_1')

    Raises:
        InputError: if names are not unique even with folder names.
    """
    stems = Counter(path.stem.casefold() for path in paths)
    names = [path.stem if stems[path.stem.casefold()] == 1 else f"{path.parent.name}_{path.stem}" for path in paths]
    duplicates = [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]
    if duplicates:
        raise InputError(
            f"several images have the name {join_names(duplicates)}. Pass each image once, or rename all but one."
        )
    return tuple(names)


def scene_groups(groups: Groups, names: Sequence[str]) -> dict[str, str]:
    """Return the group of each scene; its own name if `groups` does not list it.

    Raises:
        InputError: if `groups` names scenes that do not exist, or the file cannot be read.
    """
    table = _read_groups(groups) if isinstance(groups, Path) else dict(groups or {})
    unknown = sorted(set(table) - set(names))
    if unknown:
        raise InputError(
            f"--groups names unknown scenes: {join_names(unknown)}. Correct the names. "
            f"The scenes are {join_names(names)}."
        )
    return {name: table.get(name, name) for name in names}


def _check_same_format(first: ImageInfo, other: ImageInfo) -> None:
    if other.palette:
        raise InputError(f"{other.path} has a colour table. Convert it to RGB bands.")
    if other.bands != first.bands:
        raise InputError(
            f"{first.path} has {first.bands} bands, {other.path} has {other.bands}. "
            "All images need the same bands: convert or omit some."
        )
    if other.dtype != first.dtype:
        raise InputError(
            f"{first.path} has dtype {first.dtype}, {other.path} has {other.dtype}. "
            "All images need the same dtype: convert some."
        )


def _read_groups(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(row["scene"].strip(), row["group"].strip()) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV file of groups: {error}. Check the path.") from error
    except (KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is not a table of groups. It needs a header line `scene,group`, then one line per scene."
        ) from error
    table: dict[str, str] = {}
    for scene, group in rows:
        if table.setdefault(scene, group) != group:
            raise InputError(
                f"{path} has scene {scene} in two groups, {table[scene]} and {group}. Keep one; scenes that belong "
                "together need one group."
            )
    return table
