"""Labelled scenes, the common result of all label sources: a name, an image, a group and a reader of labels.

Images, masks and groups are matched by name.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from numpy import ndarray

from geograft.config import PrepareConfig
from geograft.dataset.tileset import Position
from geograft.errors import InputError, SettingError
from geograft.files import check_input_file
from geograft.geo.coverage import AreaWindow
from geograft.geo.grid import Window
from geograft.geo.measure import check_on_earth
from geograft.geo.rasters.nodata import ValidityRule
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.scene_image import read_info, scene_of_raster
from geograft.geo.scene import ALL_BANDS, BandChoice, RasterInput, band_numbers, is_named, only_numbers
from geograft.legend import Legend
from geograft.locations import Place
from geograft.memory import check_scene_size
from geograft.text import join_names

LabelReader = Callable[[Window], UInt8[ndarray, "h w"] | UInt8[ndarray, "o h w"]]
"""Returns the labels of a window of one scene: class indices, or the fraction of each output's class in 250ths; 255 if
unknown."""
Groups = Path | str | Mapping[str, str] | None
"""Group by scene name, or a CSV file with the columns scene and group; None if no scenes belong together."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
AFFIX_SAMPLES = 5
"""Number of images, and of affixes, that are tried to pair names."""


@dataclass(frozen=True)
class LabelledScene:
    """One image and a factory for the reader of its labels."""

    name: str
    info: ImageInfo
    group: str
    label_reader: Callable[[], LabelReader]
    """Prepares the labels of this scene; they may stay in memory as long as the reader does."""
    position: Position | None = None
    """Position among adjacent scenes; None if there are none."""


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
    areas: tuple[AreaWindow, ...] = ()
    """The labelled areas of a project, which then are the units of the split; empty without such areas."""


@runtime_checkable
class LabelSource(Protocol):
    """Images and labels in a form that `geograft prepare` can read."""

    def gather(self) -> LabelledScenes:
        """Return the scenes. Reads labels and image headers, but no pixels.

        Raises:
            InputError: if images or labels cannot be used.
        """


def read_image_infos(paths: Iterable[RasterInput], choice: BandChoice = ALL_BANDS) -> tuple[ImageInfo, ...]:
    """Return the metadata of images; of scenes with the bands of `choice`.

    Raises:
        InputError: if an image cannot be opened, has too many pixels or a colour table, or differs from the first in
            bands or dtype.
    """
    infos = []
    for path in paths:
        info = read_info(path, choice)
        check_scene_size(str(info.path), info.grid.height, info.grid.width)
        check_on_earth(str(info.path), info.grid)
        infos.append(info)
    for info in infos:
        _check_same_format(infos[0], info, choice)
    return tuple(infos)


def select_bands(gathered: LabelledScenes, settings: PrepareConfig) -> tuple[LabelledScenes, PrepareConfig]:
    """Return the scenes with only the chosen bands of their images, alpha included with --no-alpha; all by default.

    In the settings, bands are then numbers. Where images have the bands at different numbers, or some are scenes with a
    file per band, all are read as scenes of the bands in use, and the settings have none.

    Raises:
        InputError: if an image lacks one of them, or the images differ in their number.
        SettingError: if one of them is given twice.
    """
    bands = settings.bands
    repeated = next((band for band in bands if bands.count(band) > 1), None)
    if repeated is not None:
        raise SettingError(f"--bands {' '.join(map(str, bands))} has band {repeated} twice. Give each band once.")
    rule = ValidityRule(settings.nodata, settings.alpha)
    rasters = [scene.info for scene in gathered.scenes if not scene.info.scene]
    chosen = {band_numbers(bands, info.band_names, info.path) if is_named(bands) else bands for info in rasters}
    numbers = only_numbers(next(iter(chosen), ())) if len(chosen) <= 1 else ()
    as_scenes = len(rasters) < len(gathered.scenes) or len(chosen) > 1
    scenes = tuple(
        replace(scene, info=_selected_info(scene.info, bands if as_scenes else numbers, rule, as_scenes))
        for scene in gathered.scenes
    )
    for scene in scenes:
        if scene.info.bands != scenes[0].info.bands:
            raise InputError(
                f"{scenes[0].info.path} has {scenes[0].info.bands} bands, {scene.info.path} has {scene.info.bands} "
                "without the alpha band. If it is a band like the others, give --no-alpha."
            )
    return replace(gathered, scenes=scenes), replace(settings, bands=() if as_scenes else numbers)


def _selected_info(info: ImageInfo, bands: Sequence[int | str], rule: ValidityRule, as_scene: bool) -> ImageInfo:
    if info.scene:
        return replace(info, validity=rule)
    if rule.alpha or not info.alpha:
        found = replace(info, validity=rule)
    else:
        with Image.open(info.path, validity=rule) as image:
            found = image.info
    if as_scene:
        return scene_of_raster(found, BandChoice(tuple(bands) or tuple(range(1, found.bands + 1))))
    return found.select(only_numbers(bands))


def scene_names(paths: Sequence[Place]) -> tuple[str, ...]:
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


@dataclass(frozen=True)
class PairedNames:
    """Images and masks with the same name, except for an affix of each."""

    pairs: list[tuple[Path, Path]]
    mismatches: list[str]
    """Files without a match, as text."""
    note: str = ""
    """The affixes; empty if there are none."""


def pair_names(images: Path, masks: Path) -> PairedNames:
    """Return the images and masks of two folders that have the same name without suffix, sorted by name.

    Names that have no match are compared without a prefix and suffix that all images have, and all masks: `7.jpg` and
    `7_mask.png`, `img_7.png` and `gt_7.png`.

    Raises:
        InputError: if a folder is missing or contains no images.
    """
    left, right = files_by_stem(images), files_by_stem(masks)
    duplicates = {name: found for side in (left, right) for name, found in side.items() if len(found) > 1}
    faults = [f"{' and '.join(path.name for path in found)} have the same name" for found in duplicates.values()]
    names = {name: name for name in left.keys() & right.keys()}
    affixes = find_affixes(sorted(left.keys() - names.keys()), sorted(right.keys() - names.keys()))
    if affixes:
        mask_of = {affixes[1].core(name): name for name in sorted(right.keys() - names.keys())}
        cores = {name: affixes[0].core(name) for name in sorted(left.keys() - names.keys())}
        names |= {name: mask_of[core] for name, core in cores.items() if core and core in mask_of}
    faults += [f"image {left[name][0].name} has no mask" for name in sorted(left.keys() - names.keys())]
    faults += [f"mask {right[name][0].name} has no image" for name in sorted(right.keys() - set(names.values()))]
    pairs = [
        (left[name][0], right[other][0])
        for name, other in sorted(names.items())
        if name not in duplicates and other not in duplicates
    ]
    note = f"images are named {affixes[0].pattern}, masks {affixes[1].pattern}" if affixes else ""
    return PairedNames(pairs, faults, note)


@dataclass(frozen=True, order=True)
class Affixes:
    """What names have before and after the part that differs."""

    prefix: str
    suffix: str

    @property
    def pattern(self) -> str:
        """The names as text."""
        return f"{self.prefix}NAME{self.suffix}"

    def core(self, name: str) -> str:
        """Return the part of a name between the affixes; empty if the name lacks one of them."""
        long_enough = len(name) > len(self.prefix) + len(self.suffix)
        fits = long_enough and name.startswith(self.prefix) and name.endswith(self.suffix)
        return name[len(self.prefix) : len(name) - len(self.suffix)] if fits else ""


def find_affixes(images: Sequence[str], masks: Sequence[str]) -> tuple[Affixes, Affixes] | None:
    """Return the affixes with which most names have a match; None if fewer than half of the names would have one.

    Tried are those that the longest common part of two names leaves, if it ends where a word or a number does.

    >>> find_affixes(["img_7", "img_12"], ["12_gt", "7_gt"])
    (Affixes(prefix='img_', suffix=''), Affixes(prefix='', suffix='_gt'))
    """
    tried = Counter(
        affixes
        for image in images[:: max(len(images) // AFFIX_SAMPLES, 1)][:AFFIX_SAMPLES]
        for mask in masks[: AFFIX_SAMPLES * 100]
        if (affixes := _affixes_of(image, mask)) is not None
    )
    best: tuple[Affixes, Affixes] | None = None
    most = (max(min(len(images), len(masks)) - 1, 0)) // 2
    for mine, theirs in sorted(tried, key=lambda pair: (-tried[pair], pair))[:AFFIX_SAMPLES]:
        cores = [core for name in images if (core := mine.core(name))]
        others = [core for name in masks if (core := theirs.core(name))]
        shared = len(set(cores) & set(others))
        if shared > most and len(set(cores)) == len(cores) and len(set(others)) == len(others):
            best, most = (mine, theirs), shared
    return best


def _affixes_of(image: str, mask: str) -> tuple[Affixes, Affixes] | None:
    """Return what the longest common part of two names leaves; None if it does not end where a word or number does."""
    found = SequenceMatcher(None, image, mask, autojunk=False).find_longest_match()
    parts = []
    for name, start in ((image, found.a), (mask, found.b)):
        stop = start + found.size
        if not found.size or not (_is_edge(name, start) and _is_edge(name, stop)):
            return None
        parts.append(Affixes(name[:start], name[stop:]))
    return parts[0], parts[1]


def _is_edge(name: str, place: int) -> bool:
    """Return whether a word or a number begins or ends at a place in a name."""
    before, after = name[place - 1 : place], name[place : place + 1]
    return not (before + after).isalnum() or not (before and after) or before.isdigit() != after.isdigit()


def files_by_stem(folder: Path) -> dict[str, list[Path]]:
    """Return the PNG, JPEG and TIFF files of a folder by their name without suffix.

    Raises:
        InputError: if the folder is missing or contains none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Pass the folder of the images and the folder of the masks.")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found[path.stem].append(path)
    if not found:
        raise InputError(f"{folder} contains no PNG, JPEG or TIFF files. Check the path.")
    return found


def scene_groups(groups: Groups, names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the group of each scene, its own name if `groups` does not list it, and a note on other names in `groups`.

    The note is empty if there are none.

    Raises:
        InputError: if `groups` names no scene that exists, or the file cannot be read.
    """
    table = _read_groups(Path(groups)) if isinstance(groups, (str, Path)) else dict(groups or {})
    unknown = sorted(set(table) - set(names))
    if unknown and len(unknown) == len(table):
        raise InputError(
            f"--groups names unknown scenes only: {join_names(unknown)}. Correct the names. "
            f"The scenes are {join_names(names)}."
        )
    note = {"groups": f"{len(unknown)} of {len(table)} names are of no scene: {join_names(unknown)}"} if unknown else {}
    return {name: table.get(name, name) for name in names}, note


def _check_same_format(first: ImageInfo, other: ImageInfo, choice: BandChoice) -> None:
    if other.palette:
        raise InputError(f"{other.path} has a colour table. Convert it to RGB bands.")
    # With --no-alpha, a band tagged alpha counts; `prepare` compares the bands again.
    if not choice.bands and other.bands + bool(other.alpha) != first.bands + bool(first.alpha):
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
    check_input_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table_rows = csv.DictReader(file)
            if not {"scene", "group"} <= set(table_rows.fieldnames or ()):
                raise KeyError("scene, group")
            rows = [(row["scene"].strip(), row["group"].strip()) for row in table_rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV file of groups: {error}. Check the path.") from error
    except (KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is not a table of groups. It needs a header line `scene,group`, then one line per scene."
        ) from error
    table: dict[str, str] = {}
    for scene, group in rows:
        if not scene or not group:
            raise InputError(f"{path}: the line of scene {scene!r} and group {group!r} lacks one. Add it.")
        if table.setdefault(scene, group) != group:
            raise InputError(
                f"{path} has scene {scene} in two groups, {table[scene]} and {group}. Keep one; scenes that belong "
                "together need one group."
            )
    return table
