"""Images and figures of the page as data URIs, with alternative texts and captions."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import UInt8
from numpy import ndarray

from geograft.commands.model import graph_svg
from geograft.commands.report.sources import RUN_NAME, Subject
from geograft.commands.report.text import NBSP, SPLIT_NAMES, format_length, format_number, format_percent
from geograft.dataset.tileset import SPLITS, Scene, TileSet
from geograft.figures.curves import EpochCurves, curves_figure
from geograft.figures.pictures import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    ExampleTile,
    Picture,
    class_picture,
    downsample,
    error_picture,
    jpeg,
    label_picture,
    map_picture,
    outcome_picture,
    outcomes,
    tile_iou,
)
from geograft.figures.style import DARK, FN_COLOUR, FP_COLOUR, LIGHT, TP_COLOUR, Theme
from geograft.legend import SPLIT_COLOURS, Legend
from geograft.networks.summary import describe

SCENE_PX = ((1, 900), (2, 640), (6, 420), (12, 300))
"""(number of scenes, longest side of their thumbnails): the first entry with enough scenes applies."""
TILE_PX = 288
"""Longest side of a tile on the page; larger tiles are downsampled."""


@dataclass(frozen=True)
class PageImage:
    """An image with its caption."""

    src: str
    alt: str
    caption: str = ""
    note: str = ""
    width: int = 0
    height: int = 0


OUTCOMES = (
    (TRUE_POSITIVE, TP_COLOUR, "true positive: labelled and mapped"),
    (FALSE_POSITIVE, FP_COLOUR, "false positive: mapped, not labelled"),
    (FALSE_NEGATIVE, FN_COLOUR, "false negative: labelled, not mapped"),
)


@dataclass(frozen=True)
class PageFigure:
    """A figure in light and dark, for wide and narrow screens; the narrow ones are empty if the wide ones fit."""

    wide: str
    wide_dark: str
    narrow: str
    narrow_dark: str
    alt: str


def page_image(picture: Picture, alt: str, caption: str = "", note: str = "", longest_px: int = TILE_PX) -> PageImage:
    """Return a picture as a JPEG data URI, downsampled to at most `longest_px` a side."""
    small = downsample(picture, longest_px)
    height, width = small.shape[:2]
    return PageImage(data_uri(jpeg(small), "image/jpeg"), alt, caption, note, width, height)


def data_uri(content: bytes, media_type: str) -> str:
    """Return content as a base64 data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def training_curves(subject: Subject) -> list[PageFigure]:
    """Return the figures of loss and IoU over the epochs."""
    histories = {variant.name: [run.history for run in variant.runs] for variant in subject.variants if variant.runs}
    return [_curve_figure(histories, measure, name) for measure, name in (("loss", "Loss"), ("iou", "IoU"))]


def sample_row(sample: ExampleTile, legend: Legend, place: str) -> list[PageImage]:
    """Return image, label and every network's map of the tile at `place`."""
    row = [
        page_image(sample.picture, f"Image of the tile at {place}", "image"),
        page_image(label_picture(sample, legend), f"Label: {_class_cover(sample.label, legend)}", "label"),
    ]
    for name in sample.maps:
        iou = format_number(tile_iou(sample.label, sample.maps[name], len(legend.names)))
        title = "Map" if name == RUN_NAME else f"Map of {name}"
        alt = f"{title}: {_class_cover(sample.maps[name], legend)}; IoU {iou}"
        row.append(page_image(map_picture(sample, name, legend), alt, name, f"IoU{NBSP}{iou}"))
    return row


def error_row(sample: ExampleTile, legend: Legend, network: str, place: str) -> list[PageImage]:
    """Return the image of the tile at `place` and its true positives, false positives and false negatives.

    With more than two classes: image, label, map and misclassified pixels.
    """
    mapped = sample.maps[network]
    note = f"IoU{NBSP}{format_number(tile_iou(sample.label, mapped, len(legend.names)))}"
    image = page_image(sample.picture, f"Image of the tile at {place}", "image", place)
    if legend.binary:
        outcome = outcomes(sample.label, mapped)
        alt = "; ".join(f"{text} {format_percent(float((outcome == code).mean()))}" for code, _, text in OUTCOMES)
        return [
            image,
            page_image(
                outcome_picture(sample.picture, outcome), f"Fractions of the tile: {alt}", "map and label", note
            ),
        ]
    return [
        image,
        page_image(label_picture(sample, legend), f"Label: {_class_cover(sample.label, legend)}", "label"),
        page_image(
            class_picture(sample.picture, mapped, legend.colours), f"Map: {_class_cover(mapped, legend)}", "map"
        ),
        page_image(
            error_picture(sample.picture, sample.label, mapped),
            "Pixels mapped as another class than labelled",
            "misclassified pixels",
            note,
        ),
    ]


def network_graphs(subject: Subject) -> list[PageImage]:
    """Return one graph for each distinct architecture. Costs a few forward passes of one tile on the CPU.

    Raises:
        SettingError: for an encoder that timm does not have.
    """
    names_by_svg: dict[str, list[str]] = {}
    for variant in subject.variants:
        for run in variant.runs[:1]:
            card = run.card
            summary = describe(card.model, len(card.band_names), card.legend.outputs, card.tile_px)
            names_by_svg.setdefault(graph_svg(summary), []).append(variant.name)
    return [
        PageImage(
            data_uri(svg.encode(), "image/svg+xml"), f"Architecture of {' and '.join(names)}", " and ".join(names)
        )
        for svg, names in names_by_svg.items()
    ]


def class_legend(legend: Legend) -> list[tuple[str, str]]:
    """Return name and colour of the classes that are drawn; without the negative class of a binary legend."""
    return list(zip(legend.names, legend.colours, strict=True))[1 if legend.binary else 0 :]


def error_legend(legend: Legend) -> list[tuple[str, str]]:
    """Return the meaning of the colours in the error pictures: outcomes if binary, else the classes."""
    return [(text, colour) for _, colour, text in OUTCOMES] if legend.binary else class_legend(legend)


def split_legend() -> list[tuple[str, str]]:
    """Return name and colour of the splits."""
    return [(SPLIT_NAMES[split], SPLIT_COLOURS[split]) for split in SPLITS]


def scene_image(tiles: TileSet, scene: Scene, scene_count: int) -> PageImage:
    """Return a scene's thumbnail with its splits; the more scenes the page shows, the smaller."""
    longest_px = next((px for max_scenes, px in SCENE_PX if scene_count <= max_scenes), SCENE_PX[-1][1])
    counts = [(SPLIT_NAMES[split], sum(tile.scene == scene.name for tile in tiles.split(split))) for split in SPLITS]
    tile_counts = ", ".join(f"{count} {name}" for name, count in counts if count)
    resolution = f" at {format_length(scene.resolution_m)}" if scene.resolution_m else ""
    note = f"{scene.width:,} × {scene.height:,} px{resolution}; tiles: {tile_counts}"
    picture = tiles.picture(scene.name, longest_px)
    return page_image(picture, f"Scene {scene.name} with its tiles: {tile_counts}", scene.name, note, longest_px)


def _curve_figure(histories: Mapping[str, Sequence[EpochCurves]], measure: str, name: str) -> PageFigure:
    def draw(theme: Theme, narrow: bool) -> str:
        return data_uri(curves_figure(histories, measure, theme, narrow, "svg"), "image/svg+xml")

    ends = []
    for network, runs in histories.items():
        last = runs[0].epochs[-1]
        train, val = (format_number(getattr(last, f"{split}_{measure}")) for split in ("train", "val"))
        ends.append(f"{'' if network == RUN_NAME else f'{network}: '}training {train}, validation {val}")
    alt = f"{name} over the epochs for training and validation tiles. Last epoch: {'; '.join(ends)}."
    several = len(histories) > 1
    narrow, narrow_dark = (draw(theme, True) if several else "" for theme in (LIGHT, DARK))
    return PageFigure(draw(LIGHT, False), draw(DARK, False), narrow, narrow_dark, alt)


def _class_cover(classes: UInt8[ndarray, "*k h w"], legend: Legend) -> str:
    """Return the fraction of the pixels of each class, as text."""
    first = 1 if legend.binary else 0
    masks = classes == 1 if legend.overlapping else [classes == index for index in range(len(legend.names))]
    cover = [(name, float(mask.mean())) for name, mask in zip(legend.names, masks, strict=True)][first:]
    return ", ".join(f"{name} {format_percent(fraction)}" for name, fraction in cover if fraction or legend.binary)
