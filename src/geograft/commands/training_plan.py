"""Plan a training: settings for few tiles and rare classes, and the number of epochs that fits into a time."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import shapely

from geograft.config import Recipe, TrainConfig
from geograft.dataset.tileset import Tile, TileSet
from geograft.errors import SettingError
from geograft.networks.device import find_device
from geograft.networks.network import FROZEN_STAGES, Network, frozen_stages
from geograft.text import pluralise
from geograft.training.loader import TrainingData
from geograft.training.loop import expected_epoch_seconds
from geograft.training.sampling import make_batches

LINEAR = "linear"
"""The architecture that is fitted, not trained."""
PLANNED_STEPS, MIN_STEPS, MAX_PASSES = 360, 120, 80
"""Optimizer steps of a planned training with few tiles: three times those of the tables in docs/places.md, which gains
most of all that is compared there. Very few tiles are trained for fewer steps, those of MAX_PASSES passes over their
pixels, but at least MIN_STEPS (docs/training.md, "Very few tiles")."""
LENGTH_SETTINGS = {"epochs", "repeat", "batch_size", "accumulate"}
SAMPLING_SETTINGS = {"sampling", "class_weights", "copy_paste"}
RARE_FRACTION, RARE_TILES = 0.01, 0.5
"""A class is rare below this fraction of the labelled pixels, in less than this fraction of the tiles."""
SMALL_TILE_PX, LARGE_TILE_PX = 96, 1024
"""Sizes beyond which a plan advises another tile size."""
MINUTES_FACTOR = 0.95
"""Fraction of --minutes for the epochs; the rest is for reading the data and the training features."""


@dataclass(frozen=True)
class Plan:
    """Settings of a training that follow from its tile set, and the lines that say so."""

    recipe: Recipe
    lines: tuple[str, ...] = ()


def plan_training(tile_set: TileSet, recipe: Recipe, chosen: Collection[str] = ()) -> Plan:
    """Return `recipe` with settings for few tiles and rare classes, unless settings in `chosen` concern these.

    Few tiles are repeated for about PLANNED_STEPS optimizer steps in all, very few for MAX_PASSES passes over their
    pixels, or MIN_STEPS where that is more. With a rare class, tiles are sampled by class. All other settings stay, so
    that a tile set without any of these is trained as the recipe says.
    """
    lines, config = list(_tile_size_advice(tile_set.meta.settings.tile_px)), recipe.train
    tiles = tile_set.split("train")
    repeat = _planned_repeat(tiles, config)
    if tiles and repeat > config.repeat and not LENGTH_SETTINGS & set(chosen):
        config = replace(config, repeat=repeat)
        lines.append(
            f"plan: {pluralise(len(tiles), 'training tile')} are few, so each comes {repeat} times in an epoch, "
            f"for about {round(_optimizer_steps(len(tiles), config), -1)} steps in all (--repeat 1: once)"
        )
    rare = _rare_classes(tile_set)
    if rare and config.sampling == "tiles" and not SAMPLING_SETTINGS & set(chosen):
        lines.append(f"plan: {'; '.join(rare)}. Their tiles are drawn more often (--sampling tiles: not)")
        config = replace(config, sampling="classes")
    return Plan(replace(recipe, train=config), tuple(lines))


def plan_freezing(recipe: Recipe, bands: int, stages: int) -> Plan:
    """Return `recipe` with the number of frozen stages, where it is auto, of an encoder that has `stages`.

    Raises:
        WeightsError: if the file of the encoder's weights cannot be read.
    """
    model = recipe.model
    if model.frozen_stages != "auto" or model.architecture == LINEAR:
        return Plan(recipe)
    frozen = frozen_stages(model, bands, stages)
    line = (
        f"plan: the images have {pluralise(bands, 'band')} and the encoder's weights are for another number, so no "
        f"stage is frozen (--frozen-stages {min(FROZEN_STAGES, stages)}: freeze them)"
    )
    return Plan(replace(recipe, model=replace(model, frozen_stages=frozen)), () if frozen else (line,))


def _planned_repeat(tiles: Sequence[Tile], config: TrainConfig) -> int:
    """Return how often a tile comes in an epoch."""
    steps = max(1, _optimizer_steps(len(tiles), config))
    needed, wanted = (int(goal / steps + 0.5) for goal in (MIN_STEPS, PLANNED_STEPS))
    if wanted <= 1:
        return config.repeat
    allowed = int(MAX_PASSES / mean_overlap(tiles)) // (config.epochs * config.repeat)
    return max(needed, min(wanted, allowed), 1) * config.repeat


def mean_overlap(tiles: Sequence[Tile]) -> float:
    """Return in how many of some tiles a pixel of theirs is, on average; 1 if none overlap."""
    shapes: dict[str, list[shapely.Polygon]] = defaultdict(list)
    for tile in tiles:
        window = tile.window
        shapes[tile.scene].append(shapely.box(window.col, window.row, window.stop_col, window.stop_row))
    pixels = sum(shapely.area(shapely.union_all(own)) for own in shapes.values())
    return float(sum(tile.window.height * tile.window.width for tile in tiles) / max(pixels, 1))


def _optimizer_steps(tiles: int, config: TrainConfig) -> int:
    batches = len(make_batches(range(tiles * config.repeat), config.batch_size))
    return config.epochs * math.ceil(batches / config.accumulate)


def _tile_size_advice(tile_px: int) -> tuple[str, ...]:
    if tile_px < SMALL_TILE_PX:
        return (f"plan: tiles of {tile_px} pixels show little context; prepare with a larger --tile-px, such as 224",)
    if tile_px > LARGE_TILE_PX:
        return (f"plan: tiles of {tile_px} pixels need much memory; if it is short, prepare with --tile-px 512",)
    return ()


def _rare_classes(tile_set: TileSet) -> list[str]:
    """Return a description of each rare class of the training tiles."""
    fractions = tile_set.class_fractions("train")
    labelled = sum(tile.valid for tile in tile_set.split("train"))
    found = []
    for name, column in zip(tile_set.meta.legend.names, fractions.T, strict=True):
        fraction, tiles = column.sum() / max(labelled, 1e-9), int((column > 0).sum())
        if 0 < fraction < RARE_FRACTION and tiles < RARE_TILES * len(column):
            found.append(
                f"{name} covers {100 * fraction:.2g} % of the labelled pixels, in {tiles} of {len(column)} tiles"
            )
    return found


COMPILE_S, COMPILED_GAIN = 120.0, 0.2
"""Assumed seconds of a compilation on a GPU, and fraction of a step that it saves. Never measured on a GPU."""
LAUNCH_S, PX_PER_S = 0.03, 1e8
"""Assumed seconds of a step on a GPU that starts its kernels one by one, and pixels per second of a large step."""


def should_compile(config: TrainConfig, tiles: int, tile_px: int) -> bool:
    """Return whether to compile the network for a training on `tiles` tiles: the setting, if there is one.

    Otherwise on one NVIDIA GPU, if the training is expected to save twice the time of the compilation. That depends on
    settings and data alone, not on measured times, because a compiled network rounds otherwise.
    """
    if config.compile is not None:
        return config.compile
    if find_device(config.device) != "cuda" or config.devices * config.nodes > 1:
        return False
    batches = config.epochs * len(make_batches(range(tiles * config.repeat), config.batch_size))
    seconds = max(LAUNCH_S, config.batch_size * tile_px**2 / PX_PER_S)
    return batches * seconds * COMPILED_GAIN > 2 * COMPILE_S


def fit_minutes(network: Network, data: TrainingData, config: TrainConfig, minutes: float) -> tuple[TrainConfig, str]:
    """Return `config` with as many epochs as fit into `minutes`, at least one and at most its own, and a line about it.

    Times a few steps on a copy of the network.

    Raises:
        SettingError: if `minutes` is not above 0, or for several processes.
    """
    if not 0 < minutes < math.inf:
        raise SettingError(f"--minutes {minutes:g}: give a number above 0.")
    if config.devices * config.nodes > 1:
        raise SettingError("--minutes works on one device only. Choose --epochs instead.")
    seconds = expected_epoch_seconds(network, data, config)
    epochs = int(max(1, min(config.epochs, MINUTES_FACTOR * 60 * minutes / seconds)))
    line = f"plan: {pluralise(epochs, 'epoch')} of about {timedelta(seconds=round(seconds))} each"
    if epochs < config.epochs:
        line += f", not {config.epochs}, to fit into {minutes:g} min (--minutes)"
    elif epochs * seconds > 60 * minutes:
        line += f", more than {minutes:g} min (--minutes)"
    return replace(config, epochs=epochs), line
