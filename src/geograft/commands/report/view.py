"""What the page shows, ready for the template: words, numbers as text, pictures as data URIs."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import UInt8
from numpy import ndarray

from geograft.commands.model import svg_of
from geograft.commands.report.numbers import NBSP, fixed, metres, percent
from geograft.commands.report.pictures import scene_picture
from geograft.commands.report.sources import Subject
from geograft.commands.report.text import SPLIT_NAMES
from geograft.dataset.tileset import SPLITS, Scene, TileSet
from geograft.figures.curves import History, curves_figure
from geograft.figures.pictures import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    Picture,
    Sample,
    class_picture,
    error_picture,
    jpeg,
    label_picture,
    map_picture,
    outcome_picture,
    outcomes,
    shrunk,
    tile_iou,
)
from geograft.figures.style import DARK, FOUND, INVENTED, LIGHT, MISSED, SPLIT_COLOURS, Look
from geograft.legend import Legend
from geograft.networks.summary import describe

SCENE_PX = ((1, 900), (2, 640), (6, 420), (12, 300))
"""Longest side of a scene's thumbnail, for up to so many scenes."""
TILE_PX = 288
"""Longest side of a tile on the page; larger ones are shrunk."""


@dataclass(frozen=True)
class Shown:
    """One picture with its caption."""

    src: str
    alt: str
    caption: str = ""
    note: str = ""
    width: int = 0
    height: int = 0


OUTCOMES = (
    (TRUE_POSITIVE, FOUND, "found: label and map agree"),
    (FALSE_POSITIVE, INVENTED, "invented: mapped, not labelled"),
    (FALSE_NEGATIVE, MISSED, "missed: labelled, not mapped"),
)


@dataclass(frozen=True)
class Plate:
    """A figure for light and dark paper, wide and narrow screens; the narrow ones are empty where the wide ones do."""

    wide: str
    wide_dark: str
    narrow: str
    narrow_dark: str
    alt: str


def shown(picture: Picture, alt: str, caption: str = "", note: str = "", longest_px: int = TILE_PX) -> Shown:
    """Return a picture as a JPEG data URI, no side over `longest_px`."""
    small = shrunk(picture, longest_px)
    height, width = small.shape[:2]
    return Shown(data_uri(jpeg(small), "image/jpeg"), alt, caption, note, width, height)


def data_uri(content: bytes, kind: str) -> str:
    """Return content as a URI that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def curve_plates(subject: Subject) -> list[Plate]:
    """Return loss and IoU over the epochs."""
    histories = {variant.name: [run.history for run in variant.runs] for variant in subject.variants if variant.runs}
    return [_plate(histories, measure, name) for measure, name in (("loss", "Loss"), ("iou", "IoU"))]


def sample_row(sample: Sample, legend: Legend, place: str) -> list[Shown]:
    """Return image, label and every network's map of the tile at `place`."""
    row = [
        shown(sample.picture, f"The image of the tile at {place}", "image"),
        shown(label_picture(sample, legend), f"The label: {_extent(sample.label, legend)}", "label"),
    ]
    for name in sample.maps:
        iou = fixed(tile_iou(sample.label, sample.maps[name], len(legend.names)))
        alt = f"The map of {name}: {_extent(sample.maps[name], legend)}; IoU {iou}"
        row.append(shown(map_picture(sample, name, legend), alt, name, f"IoU{NBSP}{iou}"))
    return row


def error_row(sample: Sample, legend: Legend, network: str, place: str) -> list[Shown]:
    """Return image and outcome of the tile at `place`, with its IoU.

    With more than two classes: image, label, map and errors.
    """
    mapped = sample.maps[network]
    note = f"IoU{NBSP}{fixed(tile_iou(sample.label, mapped, len(legend.names)))}"
    image = shown(sample.picture, f"The image of the tile at {place}", "image", place)
    if legend.binary:
        outcome = outcomes(sample.label, mapped)
        alt = "; ".join(f"{text} {percent(float((outcome == code).mean()))}" for code, _, text in OUTCOMES)
        return [
            image,
            shown(outcome_picture(sample.picture, outcome), f"Share of the tile {alt}", "map and label", note),
        ]
    return [
        image,
        shown(label_picture(sample, legend), f"The label: {_extent(sample.label, legend)}", "label"),
        shown(class_picture(sample.picture, mapped, legend.colours), f"The map: {_extent(mapped, legend)}", "map"),
        shown(
            error_picture(sample.picture, sample.label, mapped),
            "Pixels of another class than labelled",
            "wrong pixels",
            note,
        ),
    ]


def graphs(subject: Subject) -> list[Shown]:
    """Return the graph of every network that differs from the others; costs a few passes of one tile on the CPU.

    Raises:
        SettingError: for an encoder that timm does not have.
    """
    drawn: dict[str, list[str]] = {}
    for variant in subject.variants:
        for run in variant.runs[:1]:
            card = run.card
            summary = describe(card.model, len(card.band_names), card.legend.outputs, card.tile_px)
            drawn.setdefault(svg_of(summary), []).append(variant.name)
    return [
        Shown(data_uri(svg.encode(), "image/svg+xml"), f"The graph of {' and '.join(names)}", " and ".join(names))
        for svg, names in drawn.items()
    ]


def swatches(legend: Legend) -> list[tuple[str, str]]:
    """Return name and colour of the classes that pictures show; without class 0 of two."""
    return list(zip(legend.names, legend.colours, strict=True))[1 if legend.binary else 0 :]


def error_swatches(legend: Legend) -> list[tuple[str, str]]:
    """Return what the colours of the error pictures stand for; the classes where these have more than one colour."""
    return [(text, colour) for _, colour, text in OUTCOMES] if legend.binary else swatches(legend)


def split_swatches() -> list[tuple[str, str]]:
    """Return name and colour of training, validation and test."""
    return [(SPLIT_NAMES[split], SPLIT_COLOURS[split]) for split in SPLITS]


def scene_shown(tiles: TileSet, scene: Scene, beside: int) -> Shown:
    """Return a scene's thumbnail with its split; the smaller, the more scenes (`beside`) the page shows."""
    longest_px = next((px for most, px in SCENE_PX if beside <= most), SCENE_PX[-1][1])
    counts = [(SPLIT_NAMES[split], sum(tile.scene == scene.name for tile in tiles.split(split))) for split in SPLITS]
    held = ", ".join(f"{count} {name}" for name, count in counts if count)
    ground = f"{scene.width:,} × {scene.height:,} px" + (
        f" of {metres(scene.resolution_m)}" if scene.resolution_m else ""
    )
    picture = scene_picture(tiles, scene, longest_px)
    return shown(
        picture, f"Scene {scene.name} with its tiles: {held}", scene.name, f"{ground}; tiles: {held}", longest_px
    )


def _plate(histories: Mapping[str, Sequence[History]], measure: str, name: str) -> Plate:
    def draw(look: Look, narrow: bool) -> str:
        return data_uri(curves_figure(histories, measure, look, narrow, "svg"), "image/svg+xml")

    ends = []
    for network, runs in histories.items():
        last = runs[0].epochs[-1]
        values = " and ".join(f"{part} {fixed(getattr(last, f'{part}_{measure}'))}" for part in ("train", "val"))
        ends.append(f"{network} ends at {values}")
    alt = f"{name} over the epochs, training and validation. {'; '.join(ends)}."
    several = len(histories) > 1
    narrow, narrow_dark = (draw(look, True) if several else "" for look in (LIGHT, DARK))
    return Plate(draw(LIGHT, False), draw(DARK, False), narrow, narrow_dark, alt)


def _extent(classes: UInt8[ndarray, "*k h w"], legend: Legend) -> str:
    first = 1 if legend.binary else 0
    whole = classes == 1 if legend.overlapping else [classes == index for index in range(len(legend.names))]
    shares = [(name, float(here.mean())) for name, here in zip(legend.names, whole, strict=True)][first:]
    return ", ".join(f"{name} {percent(share)}" for name, share in shares if share or legend.binary)
