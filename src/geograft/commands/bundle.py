"""The bundle of a run, for `geograft export --for bundle` and `geograft push`: its files and a thumbnail."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np

from geograft.bundle import THUMBNAIL, write_bundle
from geograft.card import CARD, WEIGHTS, ModelCard, check_weights, read_again, read_card
from geograft.commands.report.pictures import example_indices, map_examples
from geograft.commands.show import origin_of, own_tile_set
from geograft.config import InferenceConfig
from geograft.dataset.tileset import Split, TileSet
from geograft.errors import GeograftError, InputError
from geograft.figures.pictures import Picture, class_picture, downsample, png
from geograft.files import to_json
from geograft.mapping.held_out import predict_classes
from geograft.mapping.models import RunModel
from geograft.runs import read_members

THUMBNAIL_PX, GAP_PX = 320, 8
"""Longest side of each of the two pictures of a thumbnail, and the gap between them."""


def bundle_run(run: Path, out: Path, tiles: Path | None = None) -> tuple[str, ...]:
    """Write a run as a bundle: card, weights, training features, history, recipe, scores, and a thumbnail.

    `tiles` is the current path of the run's tile set, if it was moved. The thumbnail shows one of its held-out tiles
    and the map of it; without the tile set there is none. On one machine, the same run gives the same bytes. The state
    for `--resume`, the last epoch's weights and the path of the tile set are left out.

    Returns:
        Remarks for the user, one line each.

    Raises:
        InputError: if the run cannot be read, or `tiles` is not its tile set.
        OutputError: if the file cannot be written.
    """
    card, members = read_again(partial(_read, run))
    tile_set = own_tile_set(run, card, tiles)
    notes: list[str] = []
    if tile_set is not None:
        try:
            members[THUMBNAIL] = png(draw_thumbnail(run, tile_set))
        except GeograftError as error:
            notes.append(f"the bundle has no thumbnail: {error}")
    elif THUMBNAIL not in members:
        notes.append("the bundle has no thumbnail, because the tile set was moved or changed. Give --tiles.")
    write_bundle(out, members, origin_of(run, card, tile_set))
    return tuple(notes)


def draw_thumbnail(run: Path, tile_set: TileSet) -> Picture:
    """Return an image of a tile beside the map of it: the middle one of the validation tiles by their classes.

    Without validation tiles a test tile, or else a training tile. Predicted by torch on the CPU.

    Raises:
        InputError: if run or images cannot be used.
    """
    splits: tuple[Split, ...] = ("val", "test", "train")
    split = next(split for split in splits if tile_set.split(split))
    samples, legend = tile_set.samples(split), tile_set.meta.legend
    model = RunModel.open(run, InferenceConfig(backend="torch", device="cpu"))
    indices = example_indices(samples.tiles, 3, legend.overlapping)
    chosen = [indices[len(indices) // 2]]
    _, shown = map_examples(samples, chosen, {"map": partial(predict_classes, model, tile_set)}, legend)[0]
    mapped = class_picture(shown.picture, shown.maps["map"], legend.colours)
    pair = [downsample(picture, THUMBNAIL_PX) for picture in (shown.picture, mapped)]
    gap = np.full((len(pair[0]), GAP_PX, 3), 255, np.uint8)
    return np.concatenate([pair[0], gap, pair[1]], axis=1)


def _read(run: Path) -> tuple[ModelCard, dict[str, bytes]]:
    """Return the card and the files of a run, of one epoch."""
    card = read_card(run)
    members = read_members(run)
    if WEIGHTS not in members:
        raise InputError(f"{run} has no {WEIGHTS}. Copy the run again, or train it again.")
    check_weights(run, card, hashlib.sha256(members[WEIGHTS]).hexdigest())
    return card, members | {CARD: to_json(card.content).encode()}
