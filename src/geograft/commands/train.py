"""`geograft train`: train a network on a tile set; the run is a folder with weights, model card and history.

Training can start from the weights of an earlier run, also for another area, other bands or other classes.
"""

import platform
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray

from geograft.card import CARD, STATE, TILES_FILE, WEIGHTS, ModelCard, check_weights, read_card, unfinished_notes
from geograft.commands.audit import leakage_warning
from geograft.commands.training_plan import LINEAR, Plan, fit_minutes, plan_freezing, plan_training, should_compile
from geograft.config import ModelConfig, Recipe, TrainConfig, load_recipe, recipe_toml
from geograft.dataset.joined import GivenTiles, TileSetPaths
from geograft.dataset.tileset import Tile, TileSet, TileSetMeta
from geograft.dataset.units import sample_non_overlapping_tiles
from geograft.errors import InputError, OutputError, SettingError
from geograft.files import UPDATE, StrPath, complete_update, scratch_path
from geograft.inference.embedding import MAX_CELLS, fit_training_features, load_cell_encoder
from geograft.legend import Legend
from geograft.locks import lock_output
from geograft.losses.segmentation import build_loss_config
from geograft.mapping.run_calibration import UNCALIBRATED, calibrated_card
from geograft.mapping.window_choice import choose_window, window_candidates, with_window
from geograft.memory import check_batch, check_training
from geograft.metrics.applicability import Applicability
from geograft.networks.network import Network, Signature, build, has_new_bands, transfer_weights
from geograft.networks.weights import read_tensors
from geograft.progress import announce
from geograft.runs import run_file, run_file_digest, run_location
from geograft.text import pluralise
from geograft.training.checkpoint import RunFolder
from geograft.training.distributed import check_devices, rank_of
from geograft.training.history import EVENTS, RUN_ID, History
from geograft.training.linear import fit_linear
from geograft.training.loader import Scaling, TrainingData
from geograft.training.loop import check_start, fit


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
            SettingError: if it is that of a linear classifier, or one is to be fitted.
        """
        run = Path(run_location(Path(model.start)))
        if not model.start:
            return None
        found = cls(run, read_card(run))
        if LINEAR in (model.architecture, found.card.model.architecture):
            raise SettingError(
                f"start = {model.start!r}: a linear classifier has a frozen encoder as it was pretrained, from which "
                "every training starts. Train without start, and with architecture = light to train the encoder."
            )
        return found

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

    def load_into(self, network: Network, meta: TileSetMeta, fraction: float) -> str:
        """Load the run's weights into `network` and return a line that says which parts are new.

        They have the weight `fraction` in the average that is saved.

        Raises:
            SettingError: for an average with layers that the run does not have.
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
        if fraction and new:
            raise SettingError(
                f"start_fraction = {fraction:g} averages with the weights of {self.run}, which lack layers: "
                f"{'; '.join(new)}. Set it to 0."
            )
        if has_new_bands(before.bands, now.bands):
            new = (*new, "no stage frozen")
        network.start_fraction = fraction
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
"""The architecture that is fitted, not trained."""
DEFAULT_RECIPE = Recipe()


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
            *([describe_thresholds(self.card)] if self.card.calibrated else []),
            f"run: {self.run}",
        ]


def describe_thresholds(card: ModelCard) -> str:
    """Return what a run was calibrated on, its temperature, and its thresholds if it has any."""
    thresholds = ", ".join(f"{threshold:.3f}" for threshold in card.used_thresholds)
    return card.describe_calibration() + (f", threshold {thresholds}" if thresholds else "")


def train(
    tiles: GivenTiles,
    out: StrPath,
    recipe: Recipe = DEFAULT_RECIPE,
    resume: bool = False,
    minutes: float | None = None,
    chosen: Collection[str] | None = None,
) -> Training:
    """Train the network of `recipe` on a tile set, or on several together, and return the run written to `out`.

    With `resume`, an interrupted run is resumed and ends with bit-identical weights on the same machine; without an
    earlier state, training starts from the beginning. A run that has as many epochs as the recipe, or more, ends at
    its best epoch. Files are written from the first saved state on: a training that fails earlier leaves nothing.

    If the recipe names a run to start from, the network and its weights are those of that run, and with normalise =
    "auto" also the scaling of its bands.

    Several tile sets, a sequence or a mapping to weights, must agree in classes, bands and tile size
    (`geograft.dataset.joined`). With weights, positive numbers, a tile of each set is drawn in these proportions, and
    an epoch has as many draws as tiles. Without validation tiles, the weights of the last epoch are saved.

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
        paths = TileSetPaths.of(tiles)
        tile_set = paths.open()
        is_main = rank_of(recipe.train) == 0
        resuming = _refuse_other_run(out, resume) if is_main else holds_run(out)
        if chosen is not None and not resuming and recipe.model.architecture != LINEAR:
            recipe = _announced(plan_training(tile_set, recipe, chosen))
        began = read_recipe(out) if resuming and minutes is not None else None
        if began is not None:
            recipe, minutes = replace(recipe, train=replace(recipe.train, epochs=began.train.epochs)), None
        return train_tile_set(paths, tile_set, out, recipe, resuming, minutes)


def train_tile_set(
    paths: TileSetPaths, tile_set: TileSet, out: Path, recipe: Recipe, resuming: bool, minutes: float | None = None
) -> Training:
    """Train on an open tile set, as `train` does for the one at `paths`, which the run names as its own.

    The caller holds the lock of `out`. With `resuming`, `out` holds a run, which is resumed.

    Raises:
        InputError, SettingError, WeightsError, OutputError: as in `train`.
    """
    # Of the processes that torchrun or Slurm started, rank 0 writes and prints.
    is_main = rank_of(recipe.train) == 0
    recipe, network, data, notes = _prepare_training(tile_set, recipe)
    # Before training, so that unreadable scenes are reported now.
    leakage = leakage_warning(tile_set)
    linear = recipe.model.architecture == LINEAR
    if minutes is not None and not linear:
        config, line = fit_minutes(network, data, recipe.train, minutes)
        announce(line)
        recipe = replace(recipe, train=config)
    if not linear:
        recipe = _decide_compilation(recipe, tile_set, read_recipe(out) if resuming else None)
    card = _card(out.name, tile_set.meta, recipe, network, data.scaling)
    folder = RunFolder(out, card, {RECIPE: recipe_toml(recipe), TILES_FILE: paths.text()})
    history = (fit_linear if linear else fit)(network, data, recipe.train, folder, resume=resuming)
    card = folder.card_of(card, history, finished=True)
    if not is_main:
        return Training(out, card, history, *parameter_counts(network), silent=True)
    if linear:
        # In larger windows, the deep maps of a frozen encoder are not those of the tiles that it was fitted to.
        card = with_window(card, window_candidates(card.tile_px)[-1])
    else:
        card = choose_window(out, card, tile_set, recipe.train.device)
    # One that is there is of the same epoch, from an earlier training or `calibrate`.
    if recipe.train.calibrate and not card.calibrated:
        card = calibrated_card(out, card, tile_set, recipe.train.device)
    features, feature_notes = _training_features(out, card, tile_set, recipe.train.device)
    folder.finish(card, features)
    leakage_notes = (leakage,) if leakage else ()
    notes = (*notes, *leakage_notes, *history.notes, *feature_notes)
    return Training(out, card, history, *parameter_counts(network), notes=notes)


def _decide_compilation(recipe: Recipe, tile_set: TileSet, began: Recipe | None) -> Recipe:
    """Return `recipe` with `compile` decided: as the run `began`, if it is resumed and the setting is left open."""
    config = recipe.train
    if config.compile is None and began is not None and began.train.compile is not None:
        return replace(recipe, train=replace(config, compile=began.train.compile))
    compiled = should_compile(config, len(tile_set.split("train")), tile_set.meta.settings.tile_px)
    if compiled and config.compile is None and rank_of(config) == 0:
        announce("plan: the network is compiled, as the training is long (--no-compile: not)")
    return replace(recipe, train=replace(config, compile=compiled))


def _prepare_training(tile_set: TileSet, recipe: Recipe) -> tuple[Recipe, Network, TrainingData, tuple[str, ...]]:
    """Return what a training begins with: the recipe with the model of the starting run, network, data and notes.

    Raises:
        InputError, SettingError, WeightsError: as in `train`.
    """
    _check_memory(tile_set, recipe.train)
    check_devices(recipe.train)
    start = StartingRun.from_config(recipe.model)
    if recipe.model.start_fraction and not start:
        raise SettingError(
            f"start_fraction = {recipe.model.start_fraction:g} needs a run to start from. Set start, or start_fraction "
            "to 0."
        )
    if recipe.model.architecture == LINEAR:
        recipe = _without_repeats(recipe)
    recipe = replace(recipe, model=start.model_config(recipe.model, tile_set.meta)) if start else recipe
    torch.manual_seed(recipe.train.seed)
    bands = len(tile_set.meta.band_names)
    network = build(recipe.model, bands, tile_set.meta.legend.outputs)
    recipe = _announced(plan_freezing(recipe, bands, len(network.stages)))
    scaling = scaling_of(tile_set.meta, network, recipe.train.normalise)
    notes = () if tile_set.split("val") else ("no validation tiles: the weights are those of the last epoch.",)
    if start:
        line = start.load_into(network, tile_set.meta, recipe.model.start_fraction)
        notes = (*notes, *unfinished_notes([start.card]), line)
        scaling = start.scaling(tile_set.meta, scaling) if recipe.train.normalise == "auto" else scaling
    data = training_data(tile_set, recipe, scaling)
    check_start(data, recipe.train)
    return recipe, network, data, notes


def _announced(plan: Plan) -> Recipe:
    """Return the recipe of a plan, whose lines are printed once, by the first of several processes."""
    for line in plan.lines if rank_of(plan.recipe.train) == 0 else ():
        announce(line)
    return plan.recipe


def _without_repeats(recipe: Recipe) -> Recipe:
    """Return the recipe of a linear classifier with each tile once.

    Raises:
        SettingError: for several processes.
    """
    if recipe.train.devices * recipe.train.nodes > 1:
        raise SettingError("a linear classifier is fitted in one process. Set devices = 1 and nodes = 1.")
    return replace(recipe, train=replace(recipe.train, repeat=1))


def _check_memory(tile_set: TileSet, config: TrainConfig) -> None:
    tiles, tile_px = len(tile_set.split("train")), tile_set.meta.settings.tile_px
    pixel_bytes = 4 * (len(tile_set.meta.band_names) + tile_set.meta.legend.outputs)
    check_training(config.batch_size, config.accumulate, config.repeat, tiles, tile_px**2 * pixel_bytes)
    check_batch(min(config.batch_size, max(tiles * config.repeat, 1)), tile_px, pixel_bytes)


def check_trainings(tile_set: TileSet, recipes: Iterable[Recipe]) -> None:
    """Begin each training up to its first step, so that mistakes are said before the first of several trainings.

    Raises:
        InputError: as in `train`, and without validation tiles, on which the trainings are compared.
        SettingError, WeightsError: as in `train`.
    """
    if not tile_set.split("val"):
        raise InputError(f"{tile_set.title} has no val tiles. Prepare it again with --val above 0.")
    for recipe in recipes:
        _prepare_training(tile_set, recipe)


def training_data(tile_set: TileSet, recipe: Recipe, scaling: Scaling) -> TrainingData:
    """Return the training data of a tile set. Validation counts pixels of overlapping tiles once.

    Raises:
        InputError: if the train split is empty.
        SettingError: for invalid class weights.
    """
    if not tile_set.split("train"):
        raise InputError(
            f"{tile_set.title} has no train tiles. Prepare it again with other --val and --test fractions."
        )
    val = replace(tile_set.samples("val", unique_pixels=True), stored=True)
    repeated = replace(tile_set, tiles=tile_set.split("train") * recipe.train.repeat)
    samples = replace(repeated.samples("train"), stored=True)
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
        _tile_weights(tile_set, repeated.split("train")),
        len(tile_set.meta.indices),
    )
    # To refuse invalid class weights before anything is written.
    build_loss_config(recipe.train, data.legend, data.class_fractions, data.labelled_fractions)
    return data


def _tile_weights(tile_set: TileSet, tiles: Sequence[Tile]) -> Float64[ndarray, " tiles"] | None:
    """Return how often each tile is drawn, relative to the others; None if equally often."""
    return np.array([tile_set.weights.get(tile.scene, 1.0) for tile in tiles]) if tile_set.weights else None


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
    exists = holds_run(out)
    if exists and not resume:
        raise OutputError(f"{out} already contains a run; nothing was changed. Give --resume, or choose another --out.")
    # What a training that was killed in its first epoch may leave.
    ours = {scratch_path(out / UPDATE).name, EVENTS, RUN_ID}
    if not exists and out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - ours):
        raise OutputError(f"{out} exists and is not a run; nothing was changed. Choose another --out.")
    return exists


def holds_run(out: Path) -> bool:
    """Return whether a folder has the state of a training, or a run; an interrupted change of it is completed."""
    complete_update(out)
    return (out / STATE).exists() or (out / CARD).exists()


def _network_settings(model: ModelConfig) -> dict[str, str | int]:
    """Return the settings that define the network; the original U-Net ignores those of encoders."""
    ignored = {"encoder", "weights"} if model.architecture == "unet" else set()
    if not model.start_fraction:
        ignored.add("start_fraction")
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


def _card(name: str, meta: TileSetMeta, recipe: Recipe, network: Network, scaling: Scaling) -> ModelCard:
    """Return the card of a run without finished epochs."""
    # The compiler is part of torch; that it was used affects the result.
    compiler = {"torch.compile": version("torch")} if recipe.train.compile else {}
    window_px, overlap_px = window_candidates(meta.settings.tile_px)[0]
    return ModelCard(
        name=name,
        model=recipe.model,
        weights_from=network.weights_from,
        legend=meta.legend,
        band_names=meta.band_names,
        dtype=meta.dtype,
        mean=scaling.mean,
        std=scaling.std,
        tile_px=meta.settings.tile_px,
        resolution_m=meta.resolution_m,
        threshold=UNCALIBRATED,
        epoch=1,
        data_fingerprint=meta.fingerprint,
        versions=library_versions() | compiler,
        indices=meta.indices,
        nodata=meta.settings.nodata,
        alpha=meta.settings.alpha,
        finished=False,
        stride=network.body.stride,
        window_px=window_px,
        overlap_px=overlap_px,
    )
