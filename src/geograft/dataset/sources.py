"""Label sources for `geograft prepare`: polygons, mask images, COCO annotations, and DSTL's folder."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from geograft.dataset import coco, dstl
from geograft.dataset import masks as mask_images
from geograft.dataset import vector_labels as polygon_layers
from geograft.dataset.areas import SceneLabels, place_label_file
from geograft.dataset.masks import REMAINDER, FractionBands, MaskValues, parse_colour
from geograft.dataset.scenes import (
    Groups,
    LabelledScene,
    LabelledScenes,
    LabelReader,
    pair_names,
    read_image_infos,
    scene_groups,
    scene_names,
)
from geograft.dataset.vector_labels import BACKGROUND, LabelEncoding, polygon_reader, rasterized_label_reader
from geograft.errors import InputError, SettingError
from geograft.files import StrPath
from geograft.geo.rasters.raster import ImageInfo
from geograft.geo.scene import ALL_BANDS, BandChoice
from geograft.geo.vectors.label_file import is_label_file
from geograft.legend import IGNORE, Legend
from geograft.locations import Location, to_places
from geograft.text import join_names, pluralise

MAX_NAME = 100
"""Maximum length of a class name, which stands in tables, figures and fields of layers."""


@dataclass(frozen=True)
class VectorSource:
    """Images and a layer of polygons, which are reprojected to each image.

    If polygons of two classes overlap, the later one in the file wins. Images without CRS need polygons without CRS, in
    the image's coordinates: columns and rows if it is not georeferenced. If all y are negative then, they are measured
    upwards from the top edge, as a GIS draws such images.

    A project's labels.gpkg (`geograft.geo.vectors.label_file`) is recognised by its layer `areas`: then its areas say
    what is annotated, and which of them are the test split.
    """

    images: Sequence[StrPath | Location] | StrPath | Location
    labels: StrPath
    class_field: str | None = None
    """Attribute with the class. If None, all polygons belong to one class, named after the file."""
    aoi: StrPath | None = None
    """Polygons of the annotated area; pixels outside are neither trained nor scored."""
    groups: Groups = None
    overlapping: bool = False
    """Whether classes overlap: a pixel belongs to all classes with a polygon over it, not only to the last."""
    fractional: bool = False
    """Whether labels are the fraction of each pixel inside polygons, instead of the class at its centre."""
    choice: BandChoice = ALL_BANDS
    """The bands of scenes with a file per band; `prepare` sets it from its settings."""

    def gather(self) -> LabelledScenes:
        """Return the scenes. Keeps all polygons in memory, once per CRS of the images.

        Raises:
            InputError: if images or labels cannot be used, or no polygon lies on an image.
            SettingError: if `overlapping` is set for a single class.
        """
        images, path = to_places(self.images), Path(self.labels)
        if not images:
            raise InputError("no images. Pass at least one.")
        infos, names = read_image_infos(images, self.choice), scene_names(images)
        if is_label_file(path):
            return self._gather_areas(path, infos, names)
        groups, group_note = scene_groups(self.groups, names)
        labels = polygon_layers.place_polygons(path, infos, self.class_field)
        aoi = polygon_layers.place_polygons(Path(self.aoi), infos) if self.aoi else None
        names_of_classes = _class_names(labels[0].polygons.classes, path.stem)
        encoding = LabelEncoding(_legend(names_of_classes, self.overlapping), self.fractional)
        index_of = {name: index for index, name in enumerate(names_of_classes)}
        scenes = tuple(
            LabelledScene(
                name, info, groups[name], partial(polygon_layers.placed_polygon_reader, layer, seen, index_of, encoding)
            )
            for name, info, layer, seen in zip(names, infos, labels, aoi or [None] * len(infos), strict=True)
        )
        notes = {"labels": polygon_layers.layer_summary(path, labels)} | group_note
        if self.aoi and aoi:
            notes["area of interest"] = polygon_layers.layer_summary(Path(self.aoi), aoi)
        return LabelledScenes(
            encoding.legend, scenes, notes, implicit_background=not self.overlapping, fractional=encoding.fractional
        )

    def _gather_areas(self, path: Path, infos: Sequence[ImageInfo], names: Sequence[str]) -> LabelledScenes:
        for flag, given in {"--class-field": self.class_field, "--aoi": self.aoi, "--groups": self.groups}.items():
            if given:
                raise SettingError(
                    f"{flag} cannot be used with {path}, whose layer areas says what is annotated, and whose field "
                    "class the class. Omit it."
                )
        found = place_label_file(path, infos, names)
        classes = _class_names(found.classes, path.stem)
        encoding = LabelEncoding(_legend(classes, self.overlapping), self.fractional)
        index_of = {name: index for index, name in enumerate(classes)}
        scenes = tuple(
            LabelledScene(name, info, name, partial(_area_reader, labels, index_of, encoding))
            for name, info, labels in zip(names, infos, found.scenes, strict=True)
        )
        notes = {"labels": polygon_layers.layer_summary(path, [labels.polygons for labels in found.scenes])}
        implied, fractional = not self.overlapping, encoding.fractional
        return LabelledScenes(
            encoding.legend, scenes, notes | dict(found.notes), None, implied, fractional, found.windows
        )


def _area_reader(labels: SceneLabels, index_of: Mapping[str, int], encoding: LabelEncoding) -> LabelReader:
    return polygon_reader(labels.polygons.shapes(index_of), labels.labelled, encoding)


@dataclass(frozen=True)
class MaskSource:
    """A folder of images and a folder of mask images with the same sizes and names, except for suffix and affixes.

    Masks have one value or colour per class, or one band per class for overlapping classes or fractional labels.
    """

    images: StrPath
    masks: StrPath
    classes: Mapping[int, str] | Mapping[str, str] = field(default_factory=dict)
    """Class name by mask value; by colour, such as "#b50000"; or by band number from 1, where 0 is the remainder of the
    other bands. The first of two exclusive classes is the positive class, index 1; otherwise the order is kept."""
    ignore: int | str | None = None
    """Mask value or colour of pixels that are neither trained nor scored."""
    skip_mismatched: bool = False
    """Skip images and masks that do not match, instead of raising an error."""
    groups: Groups = None
    overlapping: bool = False
    """Whether each class has its own band, and a pixel may belong to several classes or none."""
    fractional: bool = False
    """Whether each class has a band with its fraction of each pixel."""
    full_value: float = 1.0
    """Value of a full pixel in such a band."""
    ignore_undeclared: bool = False
    """Whether pixels of all values or colours that `classes` lacks are ignored, instead of raising an error."""

    def gather(self) -> LabelledScenes:
        """Return the scenes.

        Raises:
            InputError: listing all images and masks that do not match in name, size or position.
            SettingError: if the classes and other settings are inconsistent, or there are no classes, listing the
                values or colours of the masks.
        """
        values = self._values()
        needed = self._band_layout(values) or self._mask_values(values)
        names_found = pair_names(Path(self.images), Path(self.masks))
        matched, unfit = mask_images.check_pairs(names_found.pairs, needed)
        mismatches = [*names_found.mismatches, *unfit]
        if mismatches and not (matched and self.skip_mismatched):
            bands = isinstance(needed, MaskValues) and not needed.by_colour
            advice = mask_images.several_bands_advice(names_found.pairs) if bands else ""
            raise InputError(
                f"{len(mismatches)} images or masks without a match: {join_names(mismatches, '; ')}. {advice} "
                "Correct or remove them, or skip them with --skip-mismatched.".replace("  ", " ")
            )
        infos = read_image_infos(image for image, _ in matched)
        names = tuple(image.stem for image, _ in matched)
        groups, group_note = scene_groups(self.groups, names)
        scenes = tuple(
            LabelledScene(name, info, groups[name], partial(_mask_reader, mask, needed))
            for name, info, (_, mask) in zip(names, infos, matched, strict=True)
        )
        notes = {"labels": f"{pluralise(len(matched), 'mask')} in {self.masks}"} | group_note
        notes |= {"names": names_found.note} if names_found.note else {}
        if mismatches:
            notes["skipped"] = f"{len(mismatches)} that do not match: {join_names(mismatches, '; ')}"
        return LabelledScenes(self._legend(values), scenes, notes, fractional=isinstance(needed, FractionBands))

    def _values(self) -> tuple[int, ...]:
        """Return the mask value, colour or band number of each class index."""
        if not self.classes:
            found = mask_images.classes_example(Path(self.masks), self.overlapping or self.fractional)
            raise SettingError(f"--classes is missing: {found}")
        if len(self.classes) < 2 or len(set(self.classes.values())) < len(self.classes):
            raise SettingError(f"--classes {dict(self.classes)}: at least two values with different names are needed.")
        values = tuple(parse_colour(key) if isinstance(key, str) else key for key in self.classes)
        if len(set(map(type, self.classes))) > 1 or len(set(values)) < len(values):
            raise SettingError(f"--classes {dict(self.classes)}: give each class one value, or each one colour.")
        return values[::-1] if self._reversed else values

    @property
    def _reversed(self) -> bool:
        """Whether the order of the classes is reversed, so that the first is the positive class."""
        return len(self.classes) == 2 and not self.overlapping

    @property
    def _by_colour(self) -> bool:
        return any(isinstance(key, str) for key in self.classes)

    def _mask_values(self, values: tuple[int, ...]) -> MaskValues:
        """Return the declared values of masks with one value or colour per pixel."""
        if self.full_value != 1:
            raise SettingError(
                "--full-value needs masks with a band per class: add --fractional or --overlapping, or omit it."
            )
        if self.ignore is not None and isinstance(self.ignore, str) != self._by_colour:
            kind = "a colour such as #000000" if self._by_colour else "a number"
            raise SettingError(f"--ignore {self.ignore}: use {kind}, as in --classes.")
        ignore = parse_colour(self.ignore) if isinstance(self.ignore, str) else self.ignore
        if ignore in values:
            raise SettingError(
                f"mask value {self.ignore} is in both --classes and --ignore: remove it from one of them."
            )
        return MaskValues(values, ignore, self._by_colour, self.ignore_undeclared)

    def _band_layout(self, values: tuple[int, ...]) -> FractionBands | None:
        """Return the band layout of fractional or overlapping masks; None for masks with one value per class."""
        if not self.overlapping and not self.fractional:
            return None
        if self._by_colour or isinstance(self.ignore, str) or self.ignore_undeclared:
            raise SettingError(
                "colours and --ignore-undeclared need masks with one value or colour per pixel: omit --overlapping and "
                "--fractional, or give the bands of the classes as numbers."
            )
        if min(values) < (1 if self.overlapping else REMAINDER):
            rest = "" if self.overlapping else ", or 0 for the remainder"
            raise SettingError(f"--classes {dict(self.classes)}: use band numbers from 1{rest}.")
        if not 0 < self.full_value < float("inf"):
            raise SettingError(f"--full-value {self.full_value:g}: use a finite value above 0.")
        return FractionBands(values, self.full_value, self.fractional, self._legend(values), self.ignore)

    def _legend(self, values: tuple[int, ...]) -> Legend:
        names = _checked(tuple(self.classes.values())[:: -1 if self._reversed else 1])
        # Maps are uint8 with 255 as nodata. If a value does not fit, maps use class indices; so do masks with bands.
        fits = all(0 <= value < IGNORE for value in values) and not (self.overlapping or self.fractional)
        fits = fits and not self._by_colour
        return Legend(names, values if fits else (), self.overlapping)


def _mask_reader(mask: Path, needed: MaskValues | FractionBands) -> LabelReader:
    if isinstance(needed, FractionBands):
        return mask_images.fraction_mask_reader(mask, needed)
    return mask_images.mask_reader(mask, needed)


@dataclass(frozen=True)
class CocoSource:
    """A folder of images and a COCO file of their annotations, as CVAT, Label Studio and Roboflow export it.

    Instances are polygons or run-length encoded masks in pixels. If instances of two classes overlap, the later one in
    the file wins. Crowd regions (`iscrowd`) belong to their class, but any instance over them wins; CVAT marks every
    painted mask as one. Where an annotation has only a box, pixels outside all instances are ignored.
    """

    images: StrPath
    """Folder of the images; their names in the file may have other folders."""
    labels: StrPath
    classes: tuple[str, ...] = ()
    """Names of the categories to use, in this order; the rest is background. Empty: all that have an annotation."""
    ignore_crowds: bool = False
    """Whether crowd regions are neither trained nor scored, except where an instance covers them."""
    skip_mismatched: bool = False
    """Skip images that are missing or have another size than in the file, instead of raising an error."""
    groups: Groups = None
    overlapping: bool = False
    """Whether classes overlap: a pixel belongs to all classes with an instance over it, not only to the last."""
    fractional: bool = False
    """Whether labels are the fraction of each pixel inside polygons, instead of the class at its centre."""

    def gather(self) -> LabelledScenes:
        """Return the scenes that the file lists. Keeps all instances in memory.

        Raises:
            InputError: if the file cannot be used, listing all images that are missing or have another size; if no
                annotation has an outline.
            SettingError: if a class is not in the file, or if `overlapping` is set for a single class.
        """
        content = coco.read_coco(Path(self.labels))
        matched, mismatches = _match_coco_images(Path(self.images), content)
        if mismatches and not self.skip_mismatched:
            raise InputError(
                f"{len(mismatches)} images of {self.labels} are not in {self.images} as listed: "
                f"{join_names(mismatches, '; ')}. "
                "Pass the folder that contains them, or skip them with --skip-mismatched."
            )
        if not matched:
            raise InputError(f"no image of {self.labels} is in {self.images}. Pass the folder of the images.")
        names_of_classes = self._class_names(content)
        encoding = LabelEncoding(_legend(names_of_classes, self.overlapping), self.fractional)
        infos = tuple(info for _, info in matched)
        names = scene_names([info.path for info in infos])
        groups, group_note = scene_groups(self.groups, names)
        drawings, counts = self._draw(content, matched, names_of_classes)
        scenes = tuple(
            LabelledScene(name, info, groups[name], partial(_coco_reader, drawing, encoding))
            for name, info, drawing in zip(names, infos, drawings, strict=True)
        )
        notes = {"labels": f"{coco.instance_summary(counts, self.ignore_crowds)} in {self.labels}"} | group_note
        if empty := sum(not drawing.parts for drawing in drawings):
            notes["images without annotations"] = f"{empty:,}, all background"
        if mismatches:
            notes["skipped"] = f"{len(mismatches)} that do not match: {join_names(mismatches, '; ')}"
        return LabelledScenes(
            encoding.legend, scenes, notes, implicit_background=not self.overlapping, fractional=encoding.fractional
        )

    def _class_names(self, content: coco.CocoFile) -> tuple[str, ...]:
        """Return background, then the classes."""
        known = {category.name for category in content.categories}
        if unknown := [name for name in self.classes if name not in known]:
            raise SettingError(
                f"--classes: {self.labels} has no category {join_names(unknown)}. It has {join_names(sorted(known))}."
            )
        if len(set(self.classes)) < len(self.classes):
            raise SettingError(f"--classes {','.join(self.classes)} has a category twice. Give each once.")
        names = [name for name in self.classes or content.used_categories() if name != BACKGROUND]
        if not names or len(names) >= coco.UNKNOWN:
            raise InputError(
                f"{self.labels} has annotations of {pluralise(len(names), 'category')}; a map has 1 to "
                f"{coco.UNKNOWN - 1} classes besides the background. Choose other ones with --classes."
            )
        return BACKGROUND, *names

    def _draw(
        self, content: coco.CocoFile, matched: list[tuple[coco.CocoImage, ImageInfo]], names: tuple[str, ...]
    ) -> tuple[list[coco.InstanceDrawing], Counter[str]]:
        # With overlapping classes no pixel is background by an annotation.
        values = {name: index for index, name in enumerate(names) if index or not self.overlapping}
        value_of = {one.id: values[one.name] for one in content.categories if one.name in values}
        annotations, drawings, total = content.by_image(), [], Counter[str]()
        for entry, info in matched:
            size = (info.grid.height, info.grid.width)
            try:
                drawing, counts = coco.draw_instances(annotations[entry.id], size, value_of, self.ignore_crowds)
            except InputError as error:
                raise InputError(f"{self.labels}: {error}. Correct it, or export the file again.") from error
            drawings.append(drawing)
            total += counts
        if not total["instance"] and (self.ignore_crowds or not total["crowd"]):
            raise InputError(
                f"{self.labels} has no annotation with an outline: {coco.instance_summary(total, self.ignore_crowds)}. "
                "Boxes are not enough; annotate polygons or masks, and export them as COCO (instances)."
            )
        return drawings, total


def _match_coco_images(
    folder: Path, content: coco.CocoFile
) -> tuple[list[tuple[coco.CocoImage, ImageInfo]], list[str]]:
    """Return the entries of a COCO file with the metadata of their images, and a list of mismatches as text."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Pass the folder of the images.")
    found = [(entry, coco.find_image(folder, entry.file_name)) for entry in content.images]
    mismatches = [f"{entry.file_name} is missing" for entry, path in found if path is None]
    present = [(entry, path) for entry, path in found if path is not None]
    matched = []
    infos = read_image_infos(path for _, path in present)
    for (entry, _), info in zip(present, infos, strict=True):
        width, height = info.grid.width, info.grid.height
        if (entry.width or width, entry.height or height) == (width, height):
            matched.append((entry, info))
        else:
            listed = f"{entry.width} x {entry.height}"
            mismatches.append(f"{entry.file_name} has {width} x {height} pixels, listed are {listed}")
    return matched, mismatches


def _coco_reader(drawing: coco.InstanceDrawing, encoding: LabelEncoding) -> LabelReader:
    values = range(1, len(encoding.legend.names) + 1)
    layers = [drawing.of_class(value) for value in values] if encoding.legend.overlapping else [drawing]
    unknown = drawing.unknown if drawing.has_unknown else None
    return rasterized_label_reader([layer.rasterize for layer in layers], unknown, encoding)


@dataclass(frozen=True)
class DstlSource:
    """The folder of the DSTL Satellite Imagery competition as Kaggle ships it, zipped or not.

    Uses the three-band images, or the eight-band ones (`sixteen_band/*_A.tif`) if there are none. DSTL's classes
    overlap: the one named last wins, unless `overlapping` is set. Scenes of the same area are in one group.
    """

    folder: StrPath
    classes: tuple[int, ...]
    """Numbers from 1 to 10: buildings, structures, road, track, trees, crops, waterway, standing water, large and small
    vehicles."""
    overlapping: bool = False
    """Whether classes overlap: a pixel belongs to all classes with a polygon over it."""
    fractional: bool = False
    """Whether labels are the fraction of each pixel inside polygons, instead of the class at its centre."""

    def gather(self) -> LabelledScenes:
        """Return the scenes that have labels and an image. Keeps the polygons of all scenes in memory.

        Raises:
            InputError: if a file is missing or cannot be read.
            SettingError: for a class that does not exist, or if `overlapping` is set for a single class.
        """
        folder = Path(self.folder)
        encoding = LabelEncoding(
            _legend((BACKGROUND, *dstl.class_names(self.classes)), self.overlapping), self.fractional
        )
        labels, extents = dstl.read_dstl_labels(folder, self.classes), dstl.read_extents(folder)
        if missing := labels.shapes.keys() - extents.keys():
            raise InputError(
                f"grid_sizes.csv in {folder} lacks {join_names(sorted(missing))}. Download the file again."
            )
        paths, without_image = dstl.image_paths(folder, sorted(labels.shapes))
        infos = read_image_infos(paths.values())
        scenes = tuple(
            LabelledScene(
                name, info, dstl.scene_group(name), partial(_dstl_reader, labels, name, extents, encoding, info)
            )
            for name, info in zip(paths, infos, strict=True)
        )
        notes = {"labels": labels.summary()}
        if without_image:
            notes["skipped"] = (
                f"{pluralise(len(without_image), 'labelled scene')} without image: {join_names(without_image)}"
            )
        full = dstl.SCALE if infos[0].bands == 3 else dstl.SCALE_INFRARED
        scale, implied = full if infos[0].dtype == "uint16" else None, not self.overlapping
        return LabelledScenes(encoding.legend, scenes, notes, scale, implied, encoding.fractional)


def _dstl_reader(
    labels: dstl.DstlLabels,
    scene: str,
    extents: Mapping[str, tuple[float, float]],
    encoding: LabelEncoding,
    info: ImageInfo,
) -> LabelReader:
    return polygon_reader(labels.in_pixels(scene, extents[scene], info.grid), None, encoding)


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of classes, or raise InputError if they cannot be those of a map."""
    if len(names) > IGNORE:
        raise InputError(f"there are {len(names)} classes, but a map has at most {IGNORE}. Use fewer.")
    for name in names:
        if not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
            raise InputError(
                f"the class name {name[:MAX_NAME]!r} cannot be used: a name has 1 to {MAX_NAME} printable characters. "
                "Rename the class."
            )
    return names


def _legend(names: tuple[str, ...], overlapping: bool) -> Legend:
    """Return the legend: background and the classes, or the classes alone if they overlap."""
    _checked(names)
    if not overlapping:
        return Legend(names)
    if len(names) < 3:
        raise SettingError(f"--overlapping needs at least two classes, but there is only {names[1]}. Omit it.")
    return Legend(names[1:], overlapping=True)


def _class_names(classes: Iterable[str], stem: str) -> tuple[str, ...]:
    """Return background, then the sorted classes: by number if all are numbers, otherwise alphabetically.

    >>> _class_names({"10", "9"}, "trees"), _class_names((), "trees")
    (('background', '9', '10'), ('background', 'trees'))
    """
    found = set(classes) - {BACKGROUND} or {stem if stem != BACKGROUND else "foreground"}
    if len(found) >= IGNORE:
        raise InputError(
            f"the class field has {len(found)} different values, but a map has at most {IGNORE - 1}. "
            "Choose another field."
        )
    numbers = all(re.fullmatch("-?[0-9]+", name) for name in found)
    return (BACKGROUND, *sorted(found, key=(lambda name: (int(name), name)) if numbers else str))
