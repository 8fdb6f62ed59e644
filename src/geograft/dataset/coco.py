"""COCO annotations as labels: polygons and run-length encoded masks, as CVAT, Label Studio and Roboflow export them.

An annotation outlines one instance of a category. Its `segmentation` is a list of polygons, [x, y, x, y, ...] in pixels
from the upper left corner, or a mask as the lengths of alternating runs of pixels outside and inside it, counted down
the columns: a list of numbers, or the string of pycocotools.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeAlias

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Int64, UInt8
from numpy import ndarray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as schema

from geograft.config import describe_fault
from geograft.errors import InputError
from geograft.files import check_input_file
from geograft.geo.grid import Window
from geograft.geo.rasters.rasterize import PixelShapes, rasterize_window, to_pixel_shapes
from geograft.geo.vectors.reader import repair_polygons
from geograft.legend import IGNORE
from geograft.text import pluralise

UNKNOWN = IGNORE - 1
"""Class value of regions that are neither a class nor background."""
MAX_RUN_BITS = 60
FIELDS = ConfigDict(extra="ignore")
"""Exporters add fields of their own."""
Coordinate = Annotated[float, Field(ge=-1e9, le=1e9)]


@schema(frozen=True, config=FIELDS)
class CocoImage:
    """An entry of `images`."""

    id: int | str
    file_name: Annotated[str, Field(min_length=1)]
    height: int | None = None
    """In pixels; Label Studio leaves it out where there is no annotation."""
    width: int | None = None


@schema(frozen=True, config=FIELDS)
class CocoCategory:
    """An entry of `categories`."""

    id: int
    name: Annotated[str, Field(min_length=1)]


@schema(frozen=True, config=FIELDS)
class EncodedMask:
    """A run-length encoded mask."""

    size: tuple[int, int]
    """Height and width."""
    counts: str | list[Annotated[int, Field(ge=0, lt=2**MAX_RUN_BITS)]]


@schema(frozen=True, config=FIELDS)
class CocoAnnotation:
    """An entry of `annotations`: one instance, or a crowd of them."""

    image_id: int | str
    category_id: int
    segmentation: EncodedMask | list[list[Coordinate]] | None = None
    bbox: list[Coordinate] | None = None
    """Left, top, width and height in pixels."""
    iscrowd: Literal[0, 1] | bool | None = 0
    id: int | str = ""


@schema(frozen=True, config=FIELDS)
class CocoFile:
    """The content of a COCO file, without the annotations of other tasks."""

    images: Annotated[list[CocoImage], Field(min_length=1)]
    categories: Annotated[list[CocoCategory], Field(min_length=1)]
    annotations: list[CocoAnnotation]

    def by_image(self) -> dict[int | str, list[CocoAnnotation]]:
        """Return the annotations of each image, in file order."""
        found: dict[int | str, list[CocoAnnotation]] = {image.id: [] for image in self.images}
        for annotation in self.annotations:
            found[annotation.image_id].append(annotation)
        return found

    def used_categories(self) -> tuple[str, ...]:
        """Return the names of the categories with an annotation, by number."""
        used = {annotation.category_id for annotation in self.annotations}
        return tuple(one.name for one in sorted(self.categories, key=lambda one: one.id) if one.id in used)


def read_coco(path: Path) -> CocoFile:
    """Return the content of a COCO file. Memory: about ten times its size.

    Raises:
        InputError: if the file is missing, is not such a file, or refers to images or categories that it lacks.
    """
    check_input_file(path)
    try:
        content = TypeAdapter(CocoFile).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    except ValidationError as error:
        raise InputError(
            f"{path} is not a COCO file with images, categories and annotations: {describe_fault(error, {})}. "
            "Export it again as COCO (instances)."
        ) from error
    if fault := _inconsistency(content):
        raise InputError(f"{path}: {fault}. Correct the file, or export it again.")
    return content


def _inconsistency(content: CocoFile) -> str:
    """Return what contradicts itself in a file; empty if nothing does."""
    for what, values in (
        ("image id", [image.id for image in content.images]),
        ("category id", [category.id for category in content.categories]),
        ("category", [category.name for category in content.categories]),
    ):
        value, count = Counter(values).most_common(1)[0]
        if count > 1:
            return f"it has the {what} {value!r} {count} times"
    images, categories = {image.id for image in content.images}, {category.id for category in content.categories}
    for annotation in content.annotations:
        if annotation.image_id not in images:
            return f"annotation {annotation.id} belongs to image {annotation.image_id!r}, which it does not list"
        if annotation.category_id not in categories:
            return f"annotation {annotation.id} has category {annotation.category_id}, which it does not list"
    return ""


def find_image(folder: Path, file_name: str) -> Path | None:
    """Return the image of an entry below `folder`; None if there is none.

    Exporters write names with folders of their own, addresses, and backslashes: the longest end of the path that exists
    below the folder counts.
    """
    parts = [part for part in PurePosixPath(file_name.replace("\\", "/")).parts if part not in ("/", "..")]
    for start in range(len(parts)):
        path = folder.joinpath(*parts[start:])
        try:
            if path.is_file():
                return path
        except OSError:  # such as a name that is too long
            return None
    return None


@dataclass(frozen=True)
class RunLengthMask:
    """A mask as runs of pixels inside, counted down the columns of a box."""

    box: Window
    starts: Int64[ndarray, " n"]
    stops: Int64[ndarray, " n"]
    value: int
    """Class value of the pixels inside."""

    def read(self, window: Window) -> Bool[ndarray, "h w"]:
        """Return the mask of `window`, which lies inside the box. Memory: 2 bytes per pixel of its columns."""
        within, rows = window.relative_to(self.box), self.box.height
        first, last = within.col * rows, within.stop_col * rows
        near = slice(int(np.searchsorted(self.stops, first, "right")), int(np.searchsorted(self.starts, last, "left")))
        steps = np.zeros(last - first + 1, np.int8)
        steps[np.maximum(self.starts[near], first) - first] += 1
        steps[np.minimum(self.stops[near], last) - first] -= 1
        inside = steps[:-1].cumsum(dtype=np.int8).reshape(within.width, rows) > 0
        found: Bool[ndarray, "h w"] = inside.T[within.row : within.stop_row]
        return found


def run_length_mask(counts: Sequence[int], height: int, value: int) -> RunLengthMask | None:
    """Return the mask of the lengths of alternating runs, outside first; None if no pixel is inside."""
    edges = np.cumsum(counts, dtype=np.int64)
    starts, stops = edges[0:-1:2], edges[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not len(starts):
        return None
    left, right = int(starts[0] // height), int((stops[-1] - 1) // height) + 1
    top, bottom = 0, height
    if (starts // height == (stops - 1) // height).all():
        top, bottom = int((starts % height).min()), int(((stops - 1) % height).max()) + 1
    moved = (starts // height - left) * (bottom - top) + starts % height - top
    return RunLengthMask(Window(top, left, bottom - top, right - left), moved, moved + stops - starts, value)


def decode_counts(text: str) -> list[int]:
    """Return the run lengths that a string of pycocotools encodes.

    Each number is in characters of 6 bits from "0" on: five bits of the number, lowest first, and whether more follow;
    the highest bit of the last is the sign. From the fourth run on, numbers are differences from the run two before.

    >>> decode_counts("14")
    [1, 4]

    Raises:
        ValueError: if the string has another character, ends within a number, or gives a negative run.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - ord("0")
        if not 0 <= digit < 64 or shift > MAX_RUN_BITS:
            raise ValueError(f"{character!r} at run {len(counts)} is not a digit of an encoded mask")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        value -= (digit >> 4 & 1) << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        if counts[-1] < 0:
            raise ValueError(f"run {len(counts) - 1} is {counts[-1]}")
        value = shift = 0
    if shift:
        raise ValueError("the string ends within a number")
    return counts


Part: TypeAlias = PixelShapes | RunLengthMask


@dataclass(frozen=True)
class InstanceDrawing:
    """The instances of one image in the order in which they are drawn: where two overlap, the later one counts."""

    parts: tuple[Part, ...]

    @property
    def has_unknown(self) -> bool:
        """Whether there are regions of unknown class."""
        return any(
            np.any((part.values if isinstance(part, PixelShapes) else part.value) == UNKNOWN) for part in self.parts
        )

    def rasterize(self, window: Window, oversampling: int) -> UInt8[ndarray, "rows cols"]:
        """Return the class values of `window`, whose pixels are split into n x n; 0 outside all instances."""
        values = self._draw(window, oversampling)
        values[values == UNKNOWN] = 0
        return values

    def unknown(self, window: Window) -> Bool[ndarray, "h w"]:
        """Return the pixels of regions of unknown class that no instance covers."""
        return np.asarray(self._draw(window, 1) == UNKNOWN)

    def of_class(self, value: int) -> "InstanceDrawing":
        """Return the instances of one class."""
        shapes = (part.of_class(value) for part in self.parts if isinstance(part, PixelShapes))
        masks = (part for part in self.parts if isinstance(part, RunLengthMask) and part.value == value)
        return InstanceDrawing((*shapes, *masks))

    def _draw(self, window: Window, oversampling: int) -> UInt8[ndarray, "rows cols"]:
        values = np.zeros((window.height * oversampling, window.width * oversampling), np.uint8)
        for part in self.parts:
            if isinstance(part, PixelShapes):
                drawn = rasterize_window(part, window, fill=IGNORE, oversampling=oversampling)
                np.copyto(values, drawn, where=drawn != IGNORE)
            elif shared := window.intersection(part.box):
                inside = part.read(shared).repeat(oversampling, axis=0).repeat(oversampling, axis=1)
                rows, cols = (
                    slice(oversampling * one.start, oversampling * one.stop)
                    for one in shared.relative_to(window).slices
                )
                values[rows, cols][inside] = part.value
        return values


UNKNOWN_REGION = "unknown region"
DRAWING_ORDER = (UNKNOWN_REGION, "crowd", "instance")


def draw_instances(
    annotations: Sequence[CocoAnnotation], size: tuple[int, int], value_of: Mapping[int, int], ignore_crowds: bool
) -> tuple[InstanceDrawing, Counter[str]]:
    """Return the drawing of the annotations of an image of `size` (height, width), and the number of each kind.

    `value_of` has the class value of each category; other categories are not drawn. Boxes without outline, and crowd
    regions with `ignore_crowds`, are of unknown class. Regions of unknown class are drawn first, then crowd regions,
    then instances in file order.

    Raises:
        InputError: if a segmentation does not fit the image or cannot be decoded; the message names the annotation.
    """
    parts: dict[str, list[tuple[ndarray, int] | RunLengthMask]] = {role: [] for role in DRAWING_ORDER}
    counts: Counter[str] = Counter()
    for one in annotations:
        if one.category_id not in value_of:
            counts["other"] += 1
            continue
        kind = "box" if not one.segmentation and one.bbox else "crowd" if one.iscrowd else "instance"
        role = {"box": UNKNOWN_REGION, "crowd": UNKNOWN_REGION if ignore_crowds else "crowd"}.get(kind, "instance")
        value = UNKNOWN if role == UNKNOWN_REGION else value_of[one.category_id]
        try:
            part = _part(one, size, value)
        except ValueError as error:
            raise InputError(f"annotation {one.id} of image {one.image_id!r}: {error}") from error
        counts[kind if part is not None else "empty"] += 1
        if part is not None:
            parts[role].append(part)
    return InstanceDrawing(tuple(_batches([part for role in DRAWING_ORDER for part in parts[role]]))), counts


def instance_summary(counts: Counter[str], ignore_crowds: bool) -> str:
    """Return a note on the annotations: how many of each kind were drawn, ignored or skipped."""
    crowd = "ignored" if ignore_crowds else "drawn below the instances"
    parts = [
        pluralise(counts["instance"], "instance"),
        f"{pluralise(counts['crowd'], 'crowd region')} {crowd}",
        f"{counts['box']:,} with only a box ignored",
        f"{counts['empty']:,} without area skipped",
        f"{counts['other']:,} of other categories skipped",
    ]
    shown = (True, *(counts[kind] for kind in ("crowd", "box", "empty", "other")))
    return ", ".join(part for part, is_shown in zip(parts, shown, strict=True) if is_shown)


def _part(one: CocoAnnotation, size: tuple[int, int], value: int) -> tuple[ndarray, int] | RunLengthMask | None:
    """Return the polygons of an annotation with their class value, or its mask; None if it has no area.

    Raises:
        ValueError: with the reason, if it does not fit the image or cannot be decoded.
    """
    if isinstance(one.segmentation, EncodedMask):
        if tuple(one.segmentation.size) != size:
            raise ValueError(f"its mask has size {list(one.segmentation.size)}, but the image {list(size)}")
        counts = one.segmentation.counts
        runs = decode_counts(counts) if isinstance(counts, str) else counts
        if sum(runs) != size[0] * size[1]:
            raise ValueError(f"the runs of its mask have {sum(runs):,} pixels, but the image {size[0] * size[1]:,}")
        return run_length_mask(runs, size[0], value)
    rings = one.segmentation or [_box_ring(one.bbox)]
    if odd := next((ring for ring in rings if len(ring) % 2), None):
        raise ValueError(f"a polygon has {len(odd)} coordinates, not pairs of x and y")
    outlines = [np.reshape(ring, (-1, 2)) for ring in rings if len(ring) >= 6]
    shapes, _ = repair_polygons(np.array([shapely.Polygon(outline) for outline in outlines], object))
    shapes = shapes[~shapely.is_empty(shapes)]
    return (shapes, value) if len(shapes) else None


def _box_ring(bbox: Sequence[float] | None) -> list[float]:
    """Return the corners of a box, none if there is no box."""
    if not bbox:
        return []
    if len(bbox) != 4:
        raise ValueError(f"its box has {len(bbox)} numbers, not left, top, width and height")
    left, top, width, height = bbox
    return [left, top, left + width, top, left + width, top + height, left, top + height]


def _batches(parts: Sequence[tuple[ndarray, int] | RunLengthMask]) -> Iterator[Part]:
    """Yield the parts in order, polygons that follow each other as one."""
    for is_mask, group in groupby(parts, lambda part: isinstance(part, RunLengthMask)):
        if is_mask:
            yield from (part for part in group if isinstance(part, RunLengthMask))
            continue
        pairs = [part for part in group if not isinstance(part, RunLengthMask)]
        values = np.repeat(np.array([value for _, value in pairs], np.uint8), [len(shapes) for shapes, _ in pairs])
        yield to_pixel_shapes(np.concatenate([shapes for shapes, _ in pairs]), values, Affine.identity())
