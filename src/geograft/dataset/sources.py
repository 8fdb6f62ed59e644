"""The three forms in which images and labels come: polygons, mask images, and the DSTL competition's folder."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from geograft.dataset import dstl
from geograft.dataset import masks as pairs
from geograft.dataset import masks as sharemasks
from geograft.dataset import vector_labels as ground
from geograft.dataset.masks import REST, ShareBands
from geograft.dataset.scenes import (
    Gathered,
    Groups,
    LabelledScene,
    LabelReader,
    counted,
    listed,
    open_infos,
    scene_groups,
    scene_names,
)
from geograft.dataset.vector_labels import Drawing, polygon_reader
from geograft.errors import InputError, SettingError
from geograft.geo.rasters.raster import ImageInfo
from geograft.legend import IGNORE, Legend

BACKGROUND = "background"


@dataclass(frozen=True)
class VectorSource:
    """Images and a layer of polygons, which are reprojected to each image.

    Where polygons of two classes overlap, the one later in the file wins. Images without CRS need polygons without CRS,
    in the images' own coordinates: columns and rows where the image has no place on the ground. Polygons whose y are
    all negative then count upwards from the top edge, as a GIS draws them.
    """

    images: tuple[Path, ...]
    labels: Path
    class_field: str | None = None
    """Attribute that holds the class. Without it all polygons are of one class, called as the file."""
    aoi: Path | None = None
    """Polygons of what the annotator looked at; the rest is neither trained nor scored."""
    groups: Groups = None
    overlapping: bool = False
    """Whether a pixel is of every class that has a polygon over it, instead of the last of them."""
    fractions: bool = False
    """Whether a pixel is of the classes by how much of it lies in their polygons."""

    def gather(self) -> Gathered:
        """Return the scenes. Holds all polygons in memory, once for every CRS among the images.

        Raises:
            InputError: when images or labels cannot be used, or the labels miss every image.
            SettingError: when a single class shall overlap.
        """
        if not self.images:
            raise InputError("no image is given. Give at least one.")
        infos, names = open_infos(self.images), scene_names(self.images)
        groups = scene_groups(self.groups, names)
        labels = ground.placements(self.labels, infos, self.class_field)
        looked = ground.placements(self.aoi, infos) if self.aoi else None
        names_of_classes = _class_names(labels[0].polygons.classes, self.labels.stem)
        drawing = Drawing(_legend(names_of_classes, self.overlapping), self.fractions)
        index_of = {name: index for index, name in enumerate(names_of_classes)}
        scenes = tuple(
            LabelledScene(
                name, info, groups[name], partial(ground.placed_polygon_reader, layer, seen, index_of, drawing)
            )
            for name, info, layer, seen in zip(names, infos, labels, looked or [None] * len(infos), strict=True)
        )
        notes = {"labels": ground.summary(self.labels, labels)}
        if self.aoi and looked:
            notes["area of interest"] = ground.summary(self.aoi, looked)
        return Gathered(drawing.legend, scenes, notes, implied=not self.overlapping, shares=drawing.shares)


@dataclass(frozen=True)
class MaskSource:
    """A folder of images and a folder of mask images of the same names, but for the suffix, and the same sizes.

    Masks hold a value a class; or, where classes overlap or labels are fractions, a band a class.
    """

    images: Path
    masks: Path
    classes: Mapping[int, str] = field(default_factory=dict)
    """Class name by mask value, or by band, counted from 1; 0 then has what the others leave of a pixel. Of two classes
    that exclude each other the first is the one of interest, index 1; others are in this order."""
    ignore: int | None = None
    """Mask value of pixels that are neither trained nor scored."""
    skip_mismatched: bool = False
    """Leave out images and masks that do not match instead of raising."""
    groups: Groups = None
    overlapping: bool = False
    """Whether each class has a band of its own, and a pixel may be of several or of none."""
    fractions: bool = False
    """Whether each class has a band that says how much of a pixel it has."""
    full_value: float = 1.0
    """What stands for a whole pixel in such a band."""

    def gather(self) -> Gathered:
        """Return the scenes.

        Raises:
            InputError: listing every image and mask that do not match in name, size or place.
            SettingError: when the table of classes cannot work.
        """
        values = self._values()
        form = self._form(values)
        sound, faults = pairs.pairs(self.images, self.masks, form.needed if form else None)
        if faults and not self.skip_mismatched:
            raise InputError(
                f"images and masks do not match, {len(faults)} in all: {listed(faults, '; ')}. "
                "Mend or remove them, or leave them out with --skip-mismatched."
            )
        if not sound:
            raise InputError(f"no image in {self.images} has a mask in {self.masks} of the same name and size.")
        infos = open_infos(image for image, _ in sound)
        names = tuple(image.stem for image, _ in sound)
        groups = scene_groups(self.groups, names)
        scenes = tuple(
            LabelledScene(name, info, groups[name], partial(self._mask_reader, mask, values, form))
            for name, info, (_, mask) in zip(names, infos, sound, strict=True)
        )
        notes = {"labels": f"{counted(len(sound), 'mask')} in {self.masks}"}
        if faults:
            notes["left out"] = f"{len(faults)} not matching: {listed(faults, '; ')}"
        return Gathered(self._legend(values), scenes, notes, shares=form is not None)

    def _values(self) -> tuple[int, ...]:
        """Return the mask values, or bands, by class index."""
        if len(self.classes) < 2 or len(set(self.classes.values())) < len(self.classes):
            raise SettingError(f"classes are {dict(self.classes)}. Two or more values with different names are needed.")
        turned = len(self.classes) == 2 and not self.overlapping
        return tuple(self.classes)[::-1] if turned else tuple(self.classes)

    def _form(self, values: tuple[int, ...]) -> ShareBands | None:
        """Return how bands hold shares; None where masks hold a value a class."""
        if not self.overlapping and not self.fractions:
            if self.ignore in self.classes:
                raise SettingError(f"mask value {self.ignore} is both a class and ignored. Remove it from one of them.")
            if self.full_value != 1:
                raise SettingError("--full-value is of masks with a band a class: --fractions or --overlapping.")
            return None
        if min(values) < (1 if self.overlapping else REST):
            rest = "" if self.overlapping else ", or 0 for what the others leave of a pixel"
            raise SettingError(f"classes are {dict(self.classes)}: here numbers are bands, counted from 1{rest}.")
        if not 0 < self.full_value < float("inf"):
            raise SettingError(f"--full-value {self.full_value:g}: a whole pixel needs a value above 0.")
        return ShareBands(values, self.full_value, self.fractions, self._legend(values), self.ignore)

    def _mask_reader(self, mask: Path, values: tuple[int, ...], form: ShareBands | None) -> LabelReader:
        return sharemasks.fraction_mask_reader(mask, form) if form else pairs.mask_reader(mask, values, self.ignore)

    def _legend(self, values: tuple[int, ...]) -> Legend:
        names = tuple(self.classes[value] for value in values)
        # Maps cannot hold 255, nor values of 16 bits: they hold the indices then. Numbers of bands are no values.
        fits = all(0 <= value < IGNORE for value in values) and not (self.overlapping or self.fractions)
        return Legend(names, values if fits else (), self.overlapping)


@dataclass(frozen=True)
class DstlSource:
    """The folder of the DSTL Satellite Imagery competition as Kaggle ships it, zipped or not.

    The three-band images, or the eight-band ones (sixteen_band/*_A.tif) where there are none of those. DSTL's classes
    overlap: of several, the one named later wins, unless `overlapping`. Scenes that show the same ground are one group.
    """

    folder: Path
    classes: tuple[int, ...]
    """Numbers from 1 to 10: buildings, structures, road, track, trees, crops, waterway, standing water, large and small
    vehicles."""
    overlapping: bool = False
    """Whether a pixel is of every class that has a polygon over it."""
    fractions: bool = False
    """Whether a pixel is of the classes by how much of it lies in their polygons."""

    def gather(self) -> Gathered:
        """Return the scenes that have labels and an image. Holds the polygons of all scenes in memory.

        Raises:
            InputError: when a file is missing or cannot be read.
            SettingError: for a class that does not exist, or when a single class shall overlap.
        """
        drawing = Drawing(_legend((BACKGROUND, *dstl.class_names(self.classes)), self.overlapping), self.fractions)
        labels, extents = dstl.read_labels(self.folder, self.classes), dstl.read_extents(self.folder)
        if strangers := labels.shapes.keys() - extents.keys():
            raise InputError(f"grid_sizes.csv in {self.folder} lacks {listed(sorted(strangers))}. Get the file again.")
        paths, missing = dstl.image_paths(self.folder, sorted(labels.shapes))
        infos = open_infos(paths.values())
        scenes = tuple(
            LabelledScene(name, info, dstl.group(name), partial(_dstl_reader, labels, name, extents, drawing, info))
            for name, info in zip(paths, infos, strict=True)
        )
        notes = {"labels": labels.summary()}
        if missing:
            notes["left out"] = f"{counted(len(missing), 'labelled scene')} without image: {listed(missing)}"
        full = dstl.SCALE if infos[0].bands == 3 else dstl.SCALE_INFRARED
        scale, implied = full if infos[0].dtype == "uint16" else None, not self.overlapping
        return Gathered(drawing.legend, scenes, notes, scale, implied, drawing.shares)


def _dstl_reader(
    labels: dstl.DstlLabels, scene: str, extents: Mapping[str, tuple[float, float]], drawing: Drawing, info: ImageInfo
) -> LabelReader:
    return polygon_reader(labels.in_pixels(scene, extents[scene], info.grid), None, drawing)


def _legend(names: tuple[str, ...], overlapping: bool) -> Legend:
    """Return the legend of background and the classes; of the classes alone where they overlap."""
    if not overlapping:
        return Legend(names)
    if len(names) < 3:
        raise SettingError(f"--overlapping needs two classes or more, and there is one: {names[1]}. Leave it out.")
    return Legend(names[1:], overlapping=True)


def _class_names(classes: Iterable[str], stem: str) -> tuple[str, ...]:
    """Return background, then the classes in order: of numbers where all are, else of letters.

    >>> _class_names({"10", "9"}, "trees"), _class_names((), "trees")
    (('background', '9', '10'), ('background', 'trees'))
    """
    found = set(classes) - {BACKGROUND} or {stem if stem != BACKGROUND else "foreground"}
    if len(found) >= IGNORE:
        raise InputError(
            f"the class field has {len(found)} different values, a map at most {IGNORE - 1}. Name another."
        )
    numbers = all(re.fullmatch("-?[0-9]+", name) for name in found)
    return (BACKGROUND, *sorted(found, key=(lambda name: (int(name), name)) if numbers else str))
