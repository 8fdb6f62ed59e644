"""`geograft train`: train a network on a tile set; the run is a folder with weights, model card and history.

Training can start from the weights of an earlier run, also for another area, other bands or other classes.
"""

import math
import platform
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from geograft.card import CARD, STATE, TILES_FILE, WEIGHTS, ModelCard, check_weights, read_card, unfinished_notes
from geograft.commands.audit import leakage_warning
from geograft.config import ModelConfig, Recipe, TrainConfig, load_recipe, recipe_toml
from geograft.dataset.tileset import TileSet, TileSetMeta
from geograft.dataset.units import sample_non_overlapping_tiles
from geograft.errors import InputError, OutputError, SettingError
from geograft.files import UPDATE, StrPath, complete_update, scratch_path, to_json
from geograft.inference.embedding import load_cell_encoder
from geograft.inference.training_features import MAX_CELLS, fit_training_features
from geograft.legend import Legend
from geograft.locks import lock_output
from geograft.losses.segmentation import build_loss_config
from geograft.mapping.window_choice import choose_window, window_candidates
from geograft.memory import check_batch, check_training
from geograft.metrics.applicability import Applicability
from geograft.networks.finetune import Signature, has_new_bands, transfer_weights
from geograft.networks.network import Network, build
from geograft.networks.weights import read_tensors
from geograft.progress import announce
from geograft.runs import run_file, run_file_digest, run_location
from geograft.text import pluralise
from geograft.training.checkpoint import RunFolder
from geograft.training.distributed import check_devices, rank_of
from geograft.training.history import History
from geograft.training.loader import Scaling, TrainingData
from geograft.training.loop import check_start, expected_epoch_seconds, fit
from geograft.training.sampling import make_batches
from geograft.training.tracking import EVENTS, RUN_ID


@dataclass(frozen=True)
class StartingRun:
    """An earlier run whose weights training starts from."""

    run: Path
    card: ModelCard

    @classmethod
    def from_config(cls, model: ModelConfig) -> "StartingRun | None":
        """Return the run that `model.start` names, or None if it is empty.

        Raises:
            InputError: if it is not a run, or has no finished epoch.
        """
        run = Path(run_location(Path(model.start)))
        return cls(run, read_card(run)) if model.start else None

    def model_config(self, chosen: ModelConfig, meta: TileSetMeta) -> ModelConfig:
        """Return `chosen` with the network of the starting run.

        Keeps `frozen_stages`, unless the tiles have new bands, whose filters in the first stage must be trained.
        """
        previous = self.card.model
        frozen = 0 if has_new_bands(self.card.band_names, meta.band_names) else chosen.frozen_stages
        network = replace(
            chosen, architecture=previous.architecture, encoder=previous.encoder, weights=previous.weights
        )
        return replace(network, start=str(self.run), frozen_stages=frozen)

    def load_into(self, network: Network, meta: TileSetMeta) -> str:
        """Load the run's weights into `network` and return a line that says which parts are new.

        Raises:
            InputError: if the run's weights do not match the network in its model card.
            WeightsError: if they are missing or damaged.
        """
        path = run_file(self.run, WEIGHTS)
        before, now = (_ends(each.band_names, each.legend) for each in (self.card, meta))
        digest = run_file_digest(self.run, WEIGHTS) if path.is_file() else ""
        try:
            new = transfer_weights(network, read_tensors(path), before, now)
        except ValueError as error:
            raise InputError(
                f"{path} does not match the network in its model card: {error}. Give a run that geograft train wrote."
            ) from error
        check_weights(self.run, self.card, digest)
        if has_new_bands(before.bands, now.bands):
            new = (*new, "no stage frozen")
        words = "; ".join(new) or "nothing new"
        first = f"first {self.card.weights_from}"
        network.weights_from = f"run {self.card.name}, sha256 {digest[:12]} ({words}), {first}"
        return f"starts from {self.run}, epoch {self.card.epoch}: {words}"

    def scaling(self, meta: TileSetMeta, other: Scaling) -> Scaling:
        """Return the run's scaling for the bands that it has, and `other` for new bands or another dtype."""
        if meta.dtype != self.card.dtype:
            return other
        known = dict(zip(self.card.band_names, zip(self.card.mean, self.card.std, strict=True), strict=True))
        own = zip(meta.band_names, other.mean, other.std, strict=True)
        mean, std = zip(*(known.get(name, (mean, std)) for name, mean, std in own), strict=True)
        return Scaling(mean, std)


def _ends(bands: tuple[str, ...], legend: Legend) -> Signature:
    return Signature(bands, legend.names, legend.overlapping)


RECIPE = "recipe.toml"
DEFAULT_RECIPE = Recipe()
THRESHOLD = 0.5

PLANNED_STEPS = 120
"""Optimizer steps of a planned training with few tiles: those of the default in docs/training.md."""
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

    Few tiles are repeated for about PLANNED_STEPS optimizer steps in all. With a rare class, tiles are sampled by
    class. All other settings stay, so that a tile set without either is trained as the recipe says.
    """
    lines, config = list(_tile_size_advice(tile_set.meta.settings.tile_px)), recipe.train
    tiles = tile_set.split("train")
    repeat = int(PLANNED_STEPS / max(1, _optimizer_steps(len(tiles), config)) + 0.5) * config.repeat
    if tiles and repeat > config.repeat and not LENGTH_SETTINGS & set(chosen):
        lines.append(
            f"plan: {pluralise(len(tiles), 'training tile')} are few, so each comes {repeat} times in an epoch, "
            f"for about {PLANNED_STEPS} steps in all (--repeat 1: once)"
        )
        config = replace(config, repeat=repeat)
    rare = _rare_classes(tile_set)
    if rare and config.sampling == "tiles" and not SAMPLING_SETTINGS & set(chosen):
        lines.append(f"plan: {'; '.join(rare)}. Their tiles are drawn more often (--sampling tiles: not)")
        config = replace(config, sampling="classes")
    return Plan(replace(recipe, train=config), tuple(lines))


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


def read_recipe(run: Path) -> Recipe | None:
    """Return the recipe that a run was started with; None before its first saved state.

    Raises:
        SettingError: if the recipe cannot be read.
    """
    complete_update(run)
    return load_recipe(run / RECIPE) if (run / RECIPE).is_file() else None


@dataclass(frozen=True)
class Training:
    """Result of `train`: a finished run."""

    run: Path
    card: ModelCard
    history: History
    parameters: int
    trainable: int
    notes: tuple[str, ...] = ()
    silent: bool = False
    """Whether another process prints the result."""

    def lines(self) -> list[str]:
        """Return the lines that the command prints."""
        if self.silent:
            return []
        best, epochs = self.history.best, pluralise(len(self.history.epochs), "epoch")
        return [
            *self.notes,
            f"{self.parameters:,} parameters, {self.trainable:,} trained; encoder weights: {self.card.weights_from}",
            f"{epochs} in {self.history.seconds:.0f} s; best: epoch {best.epoch}, "
            f"val loss {best.val_loss:.4f}, IoU {best.val_iou:.3f}, F1 {best.val_f1:.3f}",
            f"run: {self.run}",
        ]


def train(
    tiles: StrPath,
    out: StrPath,
    recipe: Recipe = DEFAULT_RECIPE,
    resume: bool = False,
    minutes: float | None = None,
    chosen: Collection[str] | None = None,
) -> Training:
    """Train the network of `recipe` on a tile set and return the run written to `out`.

    With `resume`, an interrupted run is resumed and ends with bit-identical weights on the same machine; without an
    earlier state, training starts from the beginning. A run that has as many epochs as the recipe, or more, ends at
    its best epoch. Files are written from the first saved state on: a training that fails earlier leaves nothing.

    If the recipe names a run to start from, the network and its weights are those of that run, and with normalise =
    "auto" also the scaling of its bands.

    With `minutes`, the number of epochs is lowered so that training takes about that long (`fit_minutes`); a resumed
    run keeps the number. With `chosen`, the names of settings that the user chose, the others are planned
    (`plan_training`). Both are announced, and the run's recipe.toml has the result.

    Raises:
        InputError: if `tiles` is not a tile set, has no training tiles, or the run to start from is not a run.
        SettingError: for settings that cannot work, or differ from those of the run to be resumed.
        WeightsError: if the pretrained weights are not available.
        OutputError: if `out` contains a run and `resume` is not set, or cannot be written.
    """
    out = Path(out)
    # Of the processes that torchrun or Slurm started, rank 0 holds the lock for all.
    with lock_output(out, enabled=rank_of(recipe.train) == 0):
        tile_set = TileSet.open(tiles)
        is_main = rank_of(recipe.train) == 0
        resuming = _refuse_other_run(out, resume) if is_main else _holds_run(out)
        if chosen is not None and not resuming:
            plan = plan_training(tile_set, recipe, chosen)
            recipe = plan.recipe
            for line in plan.lines if is_main else ():
                announce(line)
        began = read_recipe(out) if resuming and minutes is not None else None
        if began is not None:
            recipe, minutes = replace(recipe, train=replace(recipe.train, epochs=began.train.epochs)), None
        return _train(tile_set, out, recipe, resuming, minutes)


def _train(tile_set: TileSet, out: Path, recipe: Recipe, resuming: bool, minutes: float | None) -> Training:
    # Of the processes that torchrun or Slurm started, rank 0 writes and prints.
    is_main = rank_of(recipe.train) == 0
    recipe, network, data, notes = _prepare_training(tile_set, recipe)
    # Before training, so that unreadable scenes are reported now.
    leakage = leakage_warning(tile_set)
    if minutes is not None:
        config, line = fit_minutes(network, data, recipe.train, minutes)
        announce(line)
        recipe = replace(recipe, train=config)
    card = _card(out.name, tile_set.meta, recipe.model, network, data.scaling)
    folder = RunFolder(
        out, card, {RECIPE: recipe_toml(recipe), TILES_FILE: to_json({"tiles": str(tile_set.folder.resolve())})}
    )
    history = fit(network, data, recipe.train, folder, resume=resuming)
    card = folder.card_of(card, history, finished=True)
    if not is_main:
        return Training(out, card, history, *parameter_counts(network), silent=True)
    card = choose_window(out, card, tile_set, recipe.train.device)
    features, feature_notes = _training_features(out, card, tile_set, recipe.train.device)
    folder.finish(card, features)
    leakage_notes = (leakage,) if leakage else ()
    notes = (*notes, *leakage_notes, *history.notes, *feature_notes)
    return Training(out, card, history, *parameter_counts(network), notes=notes)


def _prepare_training(tile_set: TileSet, recipe: Recipe) -> tuple[Recipe, Network, TrainingData, tuple[str, ...]]:
    """Return what a training begins with: the recipe with the model of the starting run, network, data and notes.

    Raises:
        InputError, SettingError, WeightsError: as in `train`.
    """
    _check_memory(tile_set, recipe.train)
    check_devices(recipe.train)
    start = StartingRun.from_config(recipe.model)
    recipe = replace(recipe, model=start.model_config(recipe.model, tile_set.meta)) if start else recipe
    torch.manual_seed(recipe.train.seed)
    network = build(recipe.model, len(tile_set.meta.band_names), tile_set.meta.legend.outputs)
    scaling = scaling_of(tile_set.meta, network, recipe.train.normalise)
    notes: tuple[str, ...] = ()
    if start:
        notes = (*unfinished_notes([start.card]), start.load_into(network, tile_set.meta))
        scaling = start.scaling(tile_set.meta, scaling) if recipe.train.normalise == "auto" else scaling
    data = training_data(tile_set, recipe, scaling)
    check_start(data, recipe.train)
    return recipe, network, data, notes


def _check_memory(tile_set: TileSet, config: TrainConfig) -> None:
    tiles, tile_px = len(tile_set.split("train")), tile_set.meta.settings.tile_px
    pixel_bytes = 4 * (len(tile_set.meta.band_names) + tile_set.meta.legend.outputs)
    check_training(config.batch_size, config.accumulate, config.repeat, tiles, tile_px**2 * pixel_bytes)
    check_batch(min(config.batch_size, max(tiles * config.repeat, 1)), tile_px, pixel_bytes)


def check_trainings(tile_set: TileSet, recipes: Iterable[Recipe]) -> None:
    """Begin each training up to its first step, so that mistakes are said before the first of several trainings.

    Raises:
        InputError, SettingError, WeightsError: as in `train`.
    """
    for recipe in recipes:
        _prepare_training(tile_set, recipe)


def training_data(tile_set: TileSet, recipe: Recipe, scaling: Scaling) -> TrainingData:
    """Return the training data of a tile set. Validation counts pixels of overlapping tiles once.

    Raises:
        InputError: if the train or val split is empty.
        SettingError: for invalid class weights.
    """
    for split in ("train", "val"):
        if not tile_set.split(split):
            raise InputError(
                f"{tile_set.folder} has no {split} tiles. Prepare it again with other --val and --test fractions."
            )
    val = tile_set.samples("val", unique_pixels=True)
    repeated = replace(tile_set, tiles=tile_set.split("train") * recipe.train.repeat)
    samples = repeated.samples("train")
    if recipe.train.crops:
        samples = replace(samples, training_area=tile_set.training_area())
    data = TrainingData(
        samples,
        val,
        tile_set.meta.legend,
        scaling,
        tile_set.meta.fingerprint,
        _network_settings(recipe.model),
        repeated.class_fractions("train"),
        np.array([tile.valid for tile in repeated.split("train")]),
        len(tile_set.meta.indices),
    )
    # To refuse invalid class weights before anything is written.
    build_loss_config(recipe.train, data.legend, data.class_fractions, data.labelled_fractions)
    return data


def scaling_of(meta: TileSetMeta, network: Network, normalise: str) -> Scaling:
    """Return the scaling for these images and this network by `normalise`: "auto", "weights" or "data".

    Spectral indices are always scaled by the mean and standard deviation of the data.

    Raises:
        SettingError: for "weights", if the encoder is not pretrained, or the images do not have three bands of known
            range.
    """
    pretrained = network.input_scaling
    fits = pretrained is not None and meta.scale is not None and meta.bands == len(pretrained.mean)
    if normalise == "weights" and not fits:
        raise SettingError(
            "normalise = 'weights' needs a pretrained encoder and three bands of known range. Set 'auto' or 'data'."
        )
    if normalise == "data" or not fits or pretrained is None or meta.scale is None:
        return Scaling(meta.mean, meta.std)
    scale, own = meta.scale, slice(meta.bands, None)
    return Scaling(
        (*(m * scale for m in pretrained.mean), *meta.mean[own]), (*(s * scale for s in pretrained.std), *meta.std[own])
    )


def parameter_counts(network: torch.nn.Module) -> tuple[int, int]:
    """Return the number of parameters and of trainable ones."""
    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def library_versions() -> dict[str, str]:
    """Return the versions of Python and the libraries that affect the result of a run."""
    libraries = ("geograft", "torch", "timm", "numpy", "rasterio")
    return {"python": platform.python_version()} | {name: version(name) for name in libraries}


def _refuse_other_run(out: Path, resume: bool) -> bool:
    """Return whether `out` contains a run, which is then to be resumed.

    Raises:
        OutputError: if it contains a run and `resume` is not set, or something else.
    """
    exists = _holds_run(out)
    if exists and not resume:
        raise OutputError(f"{out} already contains a run; nothing was changed. Give --resume, or choose another --out.")
    # What a training that was killed in its first epoch may leave.
    ours = {scratch_path(out / UPDATE).name, EVENTS, RUN_ID}
    if not exists and out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - ours):
        raise OutputError(f"{out} exists and is not a run; nothing was changed. Choose another --out.")
    return exists


def _holds_run(out: Path) -> bool:
    complete_update(out)
    return (out / STATE).exists() or (out / CARD).exists()


def _network_settings(model: ModelConfig) -> dict[str, str | int]:
    """Return the settings that define the network; the original U-Net ignores those of encoders."""
    ignored = {"encoder", "weights"} if model.architecture == "unet" else set()
    if model.architecture == "unet" and not model.start:
        ignored.add("frozen_stages")
    return {name: value for name, value in asdict(model).items() if name not in ignored}


def _training_features(
    out: Path, card: ModelCard, tile_set: TileSet, device: str
) -> tuple[Applicability | None, tuple[str, ...]]:
    """Return the features of the training tiles for the area of applicability; None and a note if it is undefined."""
    encoder = load_cell_encoder(out, card, device, "torch")
    chosen, units = sample_non_overlapping_tiles(tile_set, "train", -(-MAX_CELLS // encoder.cells))
    features = fit_training_features(encoder, tile_set.samples("train"), chosen, units)
    if features is not None:
        return features, ()
    return None, (
        "the training tiles lie in one unit of the split or are identical, so the area of applicability "
        "(--applicability) is undefined. Train on more scenes or blocks.",
    )


def _card(name: str, meta: TileSetMeta, model: ModelConfig, network: Network, scaling: Scaling) -> ModelCard:
    """Return the card of a run without finished epochs."""
    window_px, overlap_px = window_candidates(meta.settings.tile_px)[0]
    return ModelCard(
        name=name,
        model=model,
        weights_from=network.weights_from,
        legend=meta.legend,
        band_names=meta.band_names,
        dtype=meta.dtype,
        mean=scaling.mean,
        std=scaling.std,
        tile_px=meta.settings.tile_px,
        resolution_m=meta.resolution_m,
        threshold=THRESHOLD,
        epoch=1,
        data_fingerprint=meta.fingerprint,
        versions=library_versions(),
        indices=meta.indices,
        nodata=meta.settings.nodata,
        alpha=meta.settings.alpha,
        finished=False,
        stride=network.body.stride,
        window_px=window_px,
        overlap_px=overlap_px,
    )
