"""What every source of images and labels gives: scenes with a name, an image, a group and a way to their labels."""

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

LabelReader = Callable[[Window], UInt8[ndarray, "h w"] | UInt8[ndarray, "o h w"]]
"""Gives the class indices of a window inside one scene, or how much of a pixel is of each output's class, 0 to 250; 255
where the label is not known."""
Groups = Path | Mapping[str, str] | None
"""Group by scene name; or a CSV file with the columns scene and group; or each scene by itself."""

MOST_LISTED = 20


@dataclass(frozen=True)
class LabelledScene:
    """One image and the way to its labels."""

    name: str
    info: ImageInfo
    group: str
    label_reader: Callable[[], LabelReader]
    """Prepares the labels of this scene, which may take memory for as long as the result is kept."""


@dataclass(frozen=True)
class Gathered:
    """All scenes of a source, of the same bands and number format."""

    legend: Legend
    scenes: tuple[LabelledScene, ...]
    notes: dict[str, str]
    """Where labels and images came from, and what was repaired, in words."""
    scale: float | None = None
    """The images' value that stands for full brightness, where the source knows it."""
    implied: bool = False
    """Whether class 0 is what no label covers, so that it may be absent when there are others."""
    shares: bool = False
    """Whether labels say how much of a pixel each class has; always so of overlapping classes."""


@runtime_checkable
class Source(Protocol):
    """Images and labels in some form that `geograft prepare` reads."""

    def gather(self) -> Gathered:
        """Return the scenes; reads labels and the headers of images, no pixels.

        Raises:
            InputError: when images or labels cannot be used.
        """


def open_infos(paths: Iterable[Path]) -> tuple[ImageInfo, ...]:
    """Return what is known of images before their pixels are read.

    Raises:
        InputError: when one cannot be opened, holds colour indices, or differs from the first in bands or format.
    """
    infos = []
    for path in paths:
        with Image.open(path) as image:
            infos.append(image.info)
    for info in infos:
        _check_alike(infos[0], info)
    return tuple(infos)


def scene_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return one name a path, each different, also where case does not count: the stem, led by folder names if needed.

    >>> scene_names([Path("a/x.tif"), Path("b/x.tif"), Path("y.tiff_1.png")])
    ('a_x', 'b_x', 'y.tiff_1')

    Raises:
        InputError: when the same file is given twice, or folders do not help.
    """
    stems = Counter(path.stem.casefold() for path in paths)
    names = [path.stem if stems[path.stem.casefold()] == 1 else f"{path.parent.name}_{path.stem}" for path in paths]
    doubles = [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]
    if doubles:
        raise InputError(f"several images are called {listed(doubles)}. Give each once, or rename all but one of them.")
    return tuple(names)


def scene_groups(groups: Groups, names: Sequence[str]) -> dict[str, str]:
    """Return the group of every scene; its own name where `groups` says nothing of it.

    Raises:
        InputError: when `groups` names scenes that do not exist, or its file cannot be read.
    """
    table = _read_groups(groups) if isinstance(groups, Path) else dict(groups or {})
    strangers = sorted(set(table) - set(names))
    if strangers:
        raise InputError(f"the groups name scenes that are not there: {listed(strangers)}. There are: {listed(names)}.")
    return {name: table.get(name, name) for name in names}


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "mask"), counted(2500, "mask")
    ('1 mask', '2,500 masks')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(items: Iterable[str], separator: str = ", ") -> str:
    """Return the first twenty items and the number of the rest as text."""
    items = list(items)
    more = [f"and {len(items) - MOST_LISTED} more"] if len(items) > MOST_LISTED else []
    return separator.join([*items[:MOST_LISTED], *more])


def _check_alike(first: ImageInfo, other: ImageInfo) -> None:
    if other.palette:
        raise InputError(f"{other.path} holds indices into a colour table, not brightness. Convert it to RGB bands.")
    if other.bands != first.bands:
        raise InputError(
            f"{first.path} has {first.bands} bands, {other.path} has {other.bands}. "
            "All images need the same bands; leave some out or convert them."
        )
    if other.dtype != first.dtype:
        raise InputError(
            f"{first.path} holds {first.dtype}, {other.path} holds {other.dtype}. "
            "All images need the same number format; convert some."
        )


def _read_groups(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return {row["scene"].strip(): row["group"].strip() for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV file of groups: {error}. Check the path.") from error
    except (KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is not a table of groups. It needs a first line `scene,group`, then one line a scene."
        ) from error
