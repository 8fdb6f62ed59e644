"""Images and mask images of the same name, and mask values as class indices."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, cells
from geograft.geo.rasters.raster import Image
from geograft.geo.tilesets.scenes import LabelReader, counted
from geograft.legend import IGNORE

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
STRIP = (512, 8192)


def pairs(images: Path, masks: Path, bands: int | None = None) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Return the (image, mask) pairs that share a name and a size, by name, and in words what has no partner.

    A mask has one band, or at least so many `bands` where these are given.

    Raises:
        InputError: when a folder is missing, or a file cannot be opened.
    """
    left, right = _by_stem(images), _by_stem(masks)
    doubles = {name: found for side in (left, right) for name, found in side.items() if len(found) > 1}
    faults = [f"{' and '.join(path.name for path in found)} share a name" for found in doubles.values()]
    faults += [f"image {left[name][0].name} has no mask" for name in sorted(left.keys() - right.keys())]
    faults += [f"mask {right[name][0].name} has no image" for name in sorted(right.keys() - left.keys())]
    names = sorted(left.keys() & right.keys() - doubles.keys())
    found = [(left[name][0], right[name][0]) for name in names]
    misfits = {pair: _misfit(*pair, bands) for pair in found}
    return [pair for pair in found if not misfits[pair]], faults + [fault for fault in misfits.values() if fault]


def mask_reader(path: Path, values: Sequence[int], ignore: int | None) -> LabelReader:
    """Return what gives the labels of one mask image: class indices by their place in `values`, 255 for `ignore`.

    What it returns raises InputError, naming the file and all its other values, when there are any.
    """
    mask = Image.open(path)

    def label(window: Window) -> UInt8[ndarray, "h w"]:
        labels, known = _indices(mask.values(window)[0], values, ignore)
        if not known.all():
            raise InputError(_undeclared(mask, values, ignore))
        return labels

    return label


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give the folder that holds the images, and the one of the masks.")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found[path.stem].append(path)
    if not found:
        raise InputError(f"{folder} holds no PNG, JPEG or TIFF files. Check the path.")
    return found


def _misfit(image_path: Path, mask_path: Path, bands: int | None) -> str:
    """Return in words how a mask does not fit its image; empty when it does."""
    with Image.open(image_path) as image, Image.open(mask_path) as mask:
        grid, other = image.info.grid, mask.info.grid
        if bands is None and mask.info.bands != 1:
            return f"mask {mask_path.name} has {mask.info.bands} bands instead of one"
        if bands is not None and mask.info.bands < bands:
            return f"mask {mask_path.name} has {counted(mask.info.bands, 'band')}, and band {bands} is named as a class"
        if (grid.height, grid.width) != (other.height, other.width):
            sizes = f"{grid.width} x {grid.height} pixels, its mask {other.width} x {other.height}"
            return f"image {image_path.name} has {sizes}"
        return "" if _same_place(grid, other) else f"mask {mask_path.name} lies elsewhere on the ground than its image"


def _same_place(grid: Grid, other: Grid) -> bool:
    """Return whether two grids agree to half a pixel; those without CRS agree with any."""
    if grid.crs is None or other.crs is None:
        return True
    corners = np.array([(0, 0), (grid.width, grid.height)])
    moved = [~grid.transform @ (other.transform @ tuple(corner)) for corner in corners]
    return grid.crs.equals(other.crs, ignore_axis_order=True) and bool((abs(moved - corners) < 0.5).all())


def _indices(
    pixels: Shaped[ndarray, "h w"], values: Sequence[int], ignore: int | None
) -> tuple[UInt8[ndarray, "h w"], Shaped[ndarray, "h w"]]:
    """Return the class index of every pixel, and which pixels hold a declared value."""
    pairs = [(value, index) for index, value in enumerate(values)] + ([] if ignore is None else [(ignore, IGNORE)])
    keys, indices = np.array(sorted(pairs)).T
    places = np.searchsorted(keys, pixels).clip(max=len(keys) - 1)
    return indices.astype(np.uint8)[places], keys[places] == pixels


def _undeclared(mask: Image, values: Sequence[int], ignore: int | None) -> str:
    strangers: set[float] = set()
    for window in cells(mask.info.grid.window, *STRIP):
        pixels = mask.values(window)[0]
        strangers |= set(np.unique(pixels[~_indices(pixels, values, ignore)[1]]).tolist())
    found = ", ".join(f"{value:g}" for value in sorted(strangers)[:20])
    declared = ", ".join(map(str, sorted([*values, *([] if ignore is None else [ignore])])))
    return (
        f"{mask.info.path} holds the values {found}, which are neither classes nor ignored (declared: {declared}). "
        "Declare them as classes, or name the one to ignore."
    )
