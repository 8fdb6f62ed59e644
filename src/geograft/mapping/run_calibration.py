"""Fit the thresholds and the temperature of a run: to its validation tiles, or to labelled tiles of another place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from scipy.special import expit, logit

from geograft.card import ModelCard
from geograft.config import InferenceConfig
from geograft.dataset.joined import check_fit
from geograft.dataset.tileset import Split, TileSet
from geograft.errors import InputError
from geograft.mapping.logit_sample import LogitSample, sample_logits
from geograft.mapping.models import RunModel
from geograft.mapping.places import Place, place_file, refuse_adapted_tiles, refuse_place, used_tiles
from geograft.metrics.calibration import STEPS, ThresholdChoice, best_temperature, choose_threshold
from geograft.text import format_table, pluralise

FEW_TILES = 30
"""Below this number of tiles, thresholds and temperature are limited."""
LIMITS, TEMPERATURE_FACTOR = (0.1, 0.9), 2.0
"""Range of thresholds with few tiles, which may all lie in one corner of the place; range of the temperature, relative
to the one before."""
MIN_TEMPERATURE = 0.5
"""Pixels that are all right would else make every probability 0 or 1."""
UNCALIBRATED = 0.5
"""Threshold of a run that is not calibrated."""


@dataclass(frozen=True)
class RunFit:
    """Temperature and thresholds that were fitted to labelled tiles."""

    sample: LogitSample
    temperature: float
    choices: tuple[ThresholdChoice, ...]
    """One for each threshold, in probabilities at temperature 1."""

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The thresholds at the temperature, which separate the same pixels."""
        return tuple(_rescaled(choice.threshold, 1 / self.temperature) for choice in self.choices)


def fit_to_tiles(model: RunModel, tile_set: TileSet, own: Sequence[float], own_temperature: float, few: bool) -> RunFit:
    """Fit temperature and thresholds to the validation tiles of a tile set, which are predicted as in maps.

    `model` is opened at temperature 1; `own` and `own_temperature` are from before. A threshold is the one with the
    highest F1, and with it IoU, if it is better than its own in at least 80 % of the bootstrap samples of the tiles,
    else its own. For `few` tiles, thresholds are limited to LIMITS, and the temperature to a factor of
    TEMPERATURE_FACTOR. Otherwise the temperature is at least MIN_TEMPERATURE. Deterministic.

    Raises:
        InputError: if the tiles have no labelled pixel, or an image cannot be read.
    """
    sample = sample_logits(model, tile_set)
    choices = tuple(
        limited_choice(sample.group_counts[:, i], threshold, few, own_temperature) for i, threshold in enumerate(own)
    )
    return RunFit(sample, _temperature(sample, own_temperature, few), choices)


def fit_run(model: RunModel, tile_set: TileSet) -> tuple[ModelCard, RunFit]:
    """Return the card with temperature and thresholds fitted to its validation tiles, as if it had none before.

    Raises:
        InputError: as `fit_to_tiles`.
    """
    card = model.card
    fit = fit_to_tiles(model, tile_set, (UNCALIBRATED,) * len(card.used_thresholds), 1.0, few=False)
    names = " and ".join(folder.resolve().name for folder in tile_set.folders)
    chosen_on = f"{pluralise(len(tile_set.split('val')), 'validation tile')} of {names}"
    return replace(card.with_thresholds(fit.thresholds), temperature=fit.temperature, calibrated=chosen_on), fit


def calibrated_card(run: Path, card: ModelCard, tile_set: TileSet, device: str) -> ModelCard:
    """Return the card of a run with temperature and thresholds fitted to its validation tiles.

    Without labelled validation tiles, it is the same card.

    Raises:
        InputError: if an image cannot be read.
    """
    if not sum(tile.valid for tile in tile_set.split("val")):
        return card
    settings = InferenceConfig(backend="torch", device=device)
    return fit_run(RunModel((run,), card, settings, {"cards": (card,), "temperature": 1.0}), tile_set)[0]


@dataclass(frozen=True)
class PlaceCalibration:
    """A place of a run, and what its tiles say of it."""

    run: Path
    place: Place
    card: ModelCard
    """The run's own card."""
    choices: tuple[ThresholdChoice, ...]
    """One for each threshold, in probabilities at temperature 1."""

    def lines(self) -> list[str]:
        """Return the output of the command line."""
        place, names = self.place, self.card.legend.names
        labels = names if self.card.legend.overlapping else names[-1:]
        rows: list[tuple[str, ...]] = [("", "run", place.name)]
        rows.append(("temperature", f"{self.card.temperature:.3f}", f"{place.temperature:.3f}"))
        before = self.card.used_thresholds
        for label, own, new, choice in zip(labels, before, place.thresholds, self.choices, strict=False):
            rows.append((f"threshold of {label}", f"{own:.3f}", f"{new:.3f}"))
            rows.append((f"F1 of {label}", *(_shown(value) for value in (choice.f1_before, choice.f1))))
        return [
            *format_table(rows),
            *(_certainty(label, choice) for label, choice in zip(labels, self.choices, strict=False)),
            f"Fitted on {pluralise(len(place.used), 'tile')} of {place.tiles}, where this F1 is optimistic: "
            "evaluate on other tiles of the place.",
            f"place: {self.run / place_file(place.name)}",
        ]


def fit_place(
    run: Path, tile_set: TileSet, name: str, splits: Sequence[Split], config: InferenceConfig
) -> PlaceCalibration:
    """Return the place `name` of a run, fitted to the tiles of `splits`; nothing is written.

    Raises:
        InputError: if the tile set does not fit the run, or has no labelled tiles in `splits`.
        SettingError: if the run was adapted to these tiles.
    """
    refuse_place(config)
    model = RunModel.open(run, config, temperature=1.0)
    check_fit(model.card, tile_set)
    chosen = tuple(replace(tile, split="val") for tile in tile_set.tiles if tile.split in splits)
    if not chosen:
        raise InputError(f"{tile_set.folder} has no {' or '.join(splits)} tiles. Give other --splits.")
    refuse_adapted_tiles(run, tile_set, chosen)
    card = model.card
    few = len(chosen) < FEW_TILES
    fit = fit_to_tiles(model, replace(tile_set, tiles=chosen), card.used_thresholds, card.temperature, few)
    used = used_tiles(tile_set, chosen)
    kept = tuple(choice.kept for choice in fit.choices)
    folder = str(tile_set.folder.resolve())
    place = Place(name, card.weights_digest, folder, fit.temperature, fit.thresholds, kept, used)
    return PlaceCalibration(run, place, card, fit.choices)


def _temperature(sample: LogitSample, own: float, few: bool) -> float:
    best = best_temperature(sample.logits, sample.label)
    if few:
        return float(np.clip(best, own / TEMPERATURE_FACTOR, own * TEMPERATURE_FACTOR))
    return max(best, MIN_TEMPERATURE)


def limited_choice(
    counts: Int64[ndarray, "groups 2 1001"], own: float, few: bool, temperature: float = 1.0
) -> ThresholdChoice:
    """Return the choice of a threshold by `choose_threshold`, limited for `few` tiles.

    `counts` are of probabilities at temperature 1; `own`, the threshold from before, is at `temperature`.
    """
    limits = LIMITS if few else (1 / STEPS, 1 - 1 / STEPS)
    lowest, highest = (_rescaled(limit, temperature) for limit in limits)
    return choose_threshold(counts, _rescaled(own, temperature), lowest, highest)


def _rescaled(probability: float, factor: float) -> float:
    """Return the probability whose logit is `factor` times as large."""
    return float(np.clip(expit(logit(np.clip(probability, 1e-6, 1 - 1e-6)) * factor), 1e-6, 1 - 1e-6))


def _certainty(label: str, choice: ThresholdChoice) -> str:
    if np.isnan(choice.f1):
        return f"The tiles have no pixel of {label}, so its threshold is the run's."
    percent = f"{100 * choice.certainty:.0f} % of the bootstrap samples of the tiles"
    if choice.kept:
        return f"The threshold of {label} is the run's: {choice.best:.3f} is better in only {percent}."
    return f"The threshold of {label} is better than the run's in {percent}."


def _shown(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}"
