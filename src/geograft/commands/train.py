"""`geograft train`: a tile set and a recipe become a run, a folder with weights, card and history.

Runs that begin with the weights of an earlier run: on new ground, other bands or other classes.
"""

import math
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from geograft.card import CARD, TILES_FILE, WEIGHTS, ModelCard, read_card
from geograft.commands.audit import audit_set
from geograft.config import ModelConfig, Recipe, recipe_toml
from geograft.dataset.tileset import TileSet, TileSetMeta
from geograft.dataset.units import sample_non_overlapping_tiles
from geograft.errors import InputError, OutputError, SettingError
from geograft.files import file_digest, translate_write_errors, write_json, write_text
from geograft.inference.embedding import MAX_CELLS, fit_training_features, load_cell_encoder
from geograft.legend import Legend
from geograft.losses.segmentation import build_loss_config
from geograft.metrics.applicability import FEATURES_FILE
from geograft.networks.finetune import Signature, has_new_bands, transfer_weights
from geograft.networks.network import Network, build
from geograft.networks.weights import read_tensors
from geograft.training.checkpoint import STATE, check_state
from geograft.training.distributed import check_devices, rank_of
from geograft.training.history import History
from geograft.training.loader import Scaling, TrainingData
from geograft.training.loop import fit


@dataclass(frozen=True)
class StartingRun:
    """An earlier run, from whose weights training goes on."""

    run: Path
    card: ModelCard

    @classmethod
    def from_config(cls, model: ModelConfig) -> "StartingRun | None":
        """Return the run that `model` names as its start, or None where it names none.

        Raises:
            InputError: when it is no finished run.
        """
        run = Path(model.start).resolve()
        return cls(run, read_card(run)) if model.start else None

    def model_config(self, chosen: ModelConfig, meta: TileSetMeta) -> ModelConfig:
        """Return `chosen` with the run's network in place of its own, for tiles with other bands perhaps.

        What is frozen stays the choice, unless there are bands to be learned: their filters lie in the first stage.
        """
        known = self.card.model
        frozen = 0 if has_new_bands(self.card.band_names, meta.band_names) else chosen.frozen_stages
        network = replace(chosen, architecture=known.architecture, encoder=known.encoder, weights=known.weights)
        return replace(network, start=str(self.run), frozen_stages=frozen)

    def load_into(self, network: Network, meta: TileSetMeta) -> str:
        """Fill `network` from the run's weights and return, in a line, what was taken and what is new.

        Raises:
            InputError: when the run's weights are not of the network that its card describes.
            WeightsError: when they are missing or damaged.
        """
        path = self.run / WEIGHTS
        before, now = (_ends(each.band_names, each.legend) for each in (self.card, meta))
        try:
            new = transfer_weights(network, read_tensors(path), before, now)
        except ValueError as error:
            raise InputError(
                f"{path} is not of the network that its card describes: {error}. Give a run that geograft train wrote."
            ) from error
        if has_new_bands(before.bands, now.bands):
            new = (*new, "no stage frozen")
        words = "; ".join(new) or "nothing new"
        first = f"first {self.card.weights_from}"
        network.weights_from = f"run {self.card.name}, sha256 {file_digest(path)[:12]} ({words}), {first}"
        return f"starts from {self.run}, epoch {self.card.epoch}: {words}"

    def scaling(self, meta: TileSetMeta, other: Scaling) -> Scaling:
        """Return the run's scaling of the bands that it knows, and `other` of new bands or another number format."""
        if meta.dtype != self.card.dtype:
            return other
        known = dict(zip(self.card.band_names, zip(self.card.mean, self.card.std, strict=True), strict=True))
        own = zip(meta.band_names, other.mean, other.std, strict=True)
        mean, std = zip(*(known.get(name, (mean, std)) for name, mean, std in own), strict=True)
        return Scaling(mean, std)


def _ends(bands: tuple[str, ...], legend: Legend) -> Signature:
    return Signature(bands, legend.names, legend.overlapping)


RECIPE = "recipe.toml"
PREVIOUS_CARD = "card-before.json"
"""The card of a finished run that more epochs are added to, until they are done."""
DEFAULT_RECIPE = Recipe()
THRESHOLD = 0.5


@dataclass(frozen=True)
class Training:
    """A finished run."""

    run: Path
    card: ModelCard
    history: History
    parameters: int
    trainable: int
    notes: tuple[str, ...] = ()
    silent: bool = False
    """Whether another process speaks for this one."""

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        if self.silent:
            return []
        best = self.history.best
        return [
            *self.notes,
            f"{self.parameters:,} parameters, {self.trainable:,} trained; encoder weights: {self.card.weights_from}",
            f"{len(self.history.epochs)} epochs in {self.history.seconds:.0f} s; best: epoch {best.epoch}, "
            f"val loss {best.val_loss:.4f}, IoU {best.val_iou:.3f}, F1 {best.val_f1:.3f}",
            f"run: {self.run}",
        ]


def train(tiles: Path, out: Path, recipe: Recipe = DEFAULT_RECIPE, resume: bool = False) -> Training:
    """Train the network of `recipe` on a tile set and return the run written to `out`.

    With `resume` a run that was stopped goes on where it was and ends with the same weights to the bit on the same
    machine; where there is nothing to go on from, it begins. Where the recipe names a run to start from, the network
    is that run's, with its weights, and with normalise = "auto" its scaling of the bands that it knows.

    Raises:
        InputError: when `tiles` is no tile set, or has no training tile, or the run to start from is none.
        SettingError: for settings that cannot work, or that differ from those of the run to be resumed.
        WeightsError: when the encoder's weights cannot be had.
        OutputError: when `out` holds a run already and `resume` is not set, or cannot be written.
    """
    tile_set = TileSet.open(tiles)
    # Of processes that torchrun or Slurm started together, the first one writes; the others train and are silent.
    leads = rank_of(recipe.train) == 0
    going_on = _refuse_other_run(out, resume) if leads else _holds_run(out)
    start = StartingRun.from_config(recipe.model)
    recipe = replace(recipe, model=start.model_config(recipe.model, tile_set.meta)) if start else recipe
    torch.manual_seed(recipe.train.seed)
    network = build(recipe.model, len(tile_set.meta.band_names), tile_set.meta.legend.outputs)
    scaling = scaling_of(tile_set.meta, network, recipe.train.normalise)
    began: tuple[str, ...] = ()
    if start:
        began = (start.load_into(network, tile_set.meta),)
        scaling = start.scaling(tile_set.meta, scaling) if recipe.train.normalise == "auto" else scaling
    data = training_data(tile_set, recipe, scaling)
    # Before the hours of training, and before anything is written: what it cannot read, it says now.
    found = audit_set(tile_set)
    check_devices(recipe.train)
    ended = going_on and check_state(out, recipe.train, data).is_finished(recipe.train)
    if leads:
        _write_settings(out, recipe, tiles)
        if not ended:
            _move_card(out)
    history = fit(network, data, recipe.train, out, resume=going_on)
    card = _keep_calibration(out, _card(out.name, tile_set.meta, recipe.model, network, data.scaling, history))
    if not leads:
        return Training(out, card, history, *parameter_counts(network), silent=True)
    known = _write_training_features(out, card, tile_set, recipe.train.device)
    # The card comes last: a run that has one is finished.
    card.write(out)
    (out / PREVIOUS_CARD).unlink(missing_ok=True)
    leaks = (found.verdict,) if found.leaks else ()
    return Training(out, card, history, *parameter_counts(network), notes=began + leaks + history.notes + known)


def training_data(tile_set: TileSet, recipe: Recipe, scaling: Scaling) -> TrainingData:
    """Return what `fit` needs of a tile set. Validation counts every pixel once.

    Raises:
        InputError: when a part that training needs has no tile.
        SettingError: for weights of classes that cannot be.
    """
    for split in ("train", "val"):
        if not tile_set.split(split):
            raise InputError(
                f"{tile_set.folder} has no {split} tiles. Prepare it again with other --val and --test shares."
            )
    val = tile_set.samples("val", unique_pixels=True)
    several = replace(tile_set, tiles=tile_set.split("train") * recipe.train.repeat)
    samples = several.samples("train")
    if recipe.train.crops:
        samples = replace(samples, crops=tile_set.training_area())
    data = TrainingData(
        samples,
        val,
        tile_set.meta.legend,
        scaling,
        tile_set.meta.fingerprint,
        _network_settings(recipe.model),
        several.class_fractions("train"),
        np.array([tile.valid for tile in several.split("train")]),
        len(tile_set.meta.indices),
    )
    # Weights that cannot be are refused before anything is written.
    build_loss_config(recipe.train, data.legend, data.class_fractions, data.labelled_fractions)
    return data


def scaling_of(meta: TileSetMeta, network: Network, normalise: str) -> Scaling:
    """Return the scaling that `normalise` ("auto", "weights" or "data") means for these images and this network.

    Indices are always scaled by the data's own mean and deviation.

    Raises:
        SettingError: for "weights" where the encoder has none, or the images' range is not known or not three bands.
    """
    pretrained = network.input_scaling
    fits = pretrained is not None and meta.scale is not None and meta.bands == len(pretrained.mean)
    if normalise == "weights" and not fits:
        raise SettingError(
            "normalise = 'weights' needs a pretrained encoder and three bands of known range; choose 'auto' or 'data'."
        )
    if normalise == "data" or not fits or pretrained is None or meta.scale is None:
        return Scaling(meta.mean, meta.std)
    scale, own = meta.scale, slice(meta.bands, None)
    return Scaling(
        (*(m * scale for m in pretrained.mean), *meta.mean[own]), (*(s * scale for s in pretrained.std), *meta.std[own])
    )


def parameter_counts(network: torch.nn.Module) -> tuple[int, int]:
    """Return the number of parameters, and of those that training changes."""
    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def library_versions() -> dict[str, str]:
    """Return the versions of what decides a run's outcome."""
    libraries = ("geograft", "torch", "timm", "numpy", "rasterio")
    return {"python": platform.python_version()} | {name: version(name) for name in libraries}


def _refuse_other_run(out: Path, resume: bool) -> bool:
    exists = _holds_run(out)
    if exists and not resume:
        raise OutputError(f"{out} holds a run already; nothing was changed. Give --resume to go on, or another --out.")
    # What stopped before its first state was written holds settings alone, and nothing is lost by beginning again.
    begun = (out / TILES_FILE).exists()
    if out.exists() and not exists and not begun and (out.is_file() or any(out.iterdir())):
        raise OutputError(f"{out} exists already and is no run; nothing was changed. Choose another --out.")
    return exists


def _holds_run(out: Path) -> bool:
    return (out / STATE).exists() or (out / CARD).exists()


def _write_settings(out: Path, recipe: Recipe, tiles: Path) -> None:
    with translate_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text(out / RECIPE, recipe_toml(recipe))
    write_json(out / TILES_FILE, {"tiles": str(tiles.resolve())})


def _network_settings(model: ModelConfig) -> dict[str, str | int]:
    """Return the settings that decide a network: of the original U-Net not those of encoders."""
    idle = {"encoder", "weights"} if model.architecture == "unet" else set()
    if model.architecture == "unet" and not model.start:
        idle.add("frozen_stages")
    return {name: value for name, value in asdict(model).items() if name not in idle}


def _move_card(out: Path) -> None:
    """Take a finished run's card away while more epochs change the weights that it speaks of."""
    if (out / CARD).exists():
        with translate_write_errors(out):
            (out / CARD).replace(out / PREVIOUS_CARD)


def _write_training_features(out: Path, card: ModelCard, tile_set: TileSet, device: str) -> tuple[str, ...]:
    """Write what the best network knows of its training ground, and return a note where nothing can be said of it."""
    encoder = load_cell_encoder(out, card, device)
    chosen, units = sample_non_overlapping_tiles(tile_set, "train", -(-MAX_CELLS // encoder.cells))
    known = fit_training_features(encoder, tile_set.samples("train"), chosen, units)
    if known is None:
        (out / FEATURES_FILE).unlink(missing_ok=True)
        return (
            "the training tiles lie in one unit of the split or are all alike, so predict cannot say where the run "
            "applies (--applicability). Train on more scenes or blocks.",
        )
    known.write(out / FEATURES_FILE)
    return ()


def _keep_calibration(out: Path, card: ModelCard) -> ModelCard:
    """Return the card with the calibration of the one that was there, when that is of the same weights."""
    try:
        before = read_card(out, CARD if (out / CARD).exists() else PREVIOUS_CARD)
    except InputError:
        return card
    if (before.epoch, before.data_fingerprint) != (card.epoch, card.data_fingerprint):
        return card
    chosen = {name: getattr(before, name) for name in ("threshold", "thresholds", "temperature", "calibrated")}
    return replace(card, **chosen)


def _card(
    name: str, meta: TileSetMeta, model: ModelConfig, network: Network, scaling: Scaling, history: History
) -> ModelCard:
    best = history.best
    scores = {"loss": best.val_loss, "iou": best.val_iou, "f1": best.val_f1}
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
        epoch=best.epoch,
        scores={name: value for name, value in scores.items() if not math.isnan(value)},
        data_fingerprint=meta.fingerprint,
        versions=library_versions(),
        indices=meta.indices,
    )
