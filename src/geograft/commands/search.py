"""The search space, the trials and the Optuna study of `geograft find`, stored in the text file journal.log.

Each trial is sampled with its own seed, given the finished trials before it. An interrupted search therefore samples
the same trial again, and a search that is extended later samples the trials that it would have sampled at once. Optuna
is an optional dependency, which only this module imports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from geograft.commands.trials import SETTINGS_WITHOUT_EFFECT
from geograft.config import ModelConfig, Recipe
from geograft.errors import InputError, OutputError, SettingError
from geograft.files import translate_write_errors
from geograft.resume import differences, to_json_types

Values = dict[str, str | float]
"""Values of a trial, by setting."""
LEARNING_RATE_SPAN = 5.0
"""Learning rates are sampled between the recipe's divided and multiplied by this factor."""
REGION_LOSSES = ("dice", "tversky", "lovasz")
PIXEL_LOSSES = ("ce", "focal")
RUNG_DIVISORS = (4, 2, 1)
"""A trial trains for the epochs divided by each of these: a quarter, then half, then all."""
DIGITS = 3
"""Significant digits of a sampled learning rate."""


@dataclass(frozen=True)
class SearchSpace:
    """The search space: a recipe and the encoders to try in it."""

    recipe: Recipe
    encoders: tuple[str, ...]

    @classmethod
    def around(cls, recipe: Recipe, encoders: tuple[str, ...]) -> "SearchSpace":
        """Return the search space around `recipe` with `encoders`, or with the recipe's own encoder.

        Raises:
            SettingError: for encoders of a network that has none, or weights that fit one encoder only.
        """
        model, several = recipe.model, tuple(dict.fromkeys(encoders))
        if several and (model.architecture == "unet" or model.start):
            reason = "start is set" if model.start else "architecture = unet has no encoder"
            raise SettingError(f"--encoders {','.join(several)}: {reason}. Leave --encoders out.")
        if len(several) > 1 and model.weights not in ("hub", "none"):
            weights = f"weights = {model.weights!r} fit one encoder only"
            raise SettingError(f"--encoders {','.join(several)}: {weights}. Give --weights hub or none.")
        return cls(replace(recipe, variants=()), several or (model.encoder,))

    def default_values(self) -> Values:
        """Return the recipe's own values; the first encoder if the recipe's is not one of those to try."""
        train, model = self.recipe.train, self.recipe.model
        encoder = model.encoder if model.encoder in self.encoders else self.encoders[0]
        return {name: encoder if name == "encoder" else getattr(train, name) for name in self.parameter_names()}

    def parameter_names(self) -> tuple[str, ...]:
        """Return the names of the searched settings; an encoder from scratch has no learning rate of its own."""
        several = ("encoder",) if len(self.encoders) > 1 or self.encoders[0] != self.recipe.model.encoder else ()
        fine_tuned = ("encoder_lr",) if _fine_tuned(self.recipe.model) else ()
        return (*several, "decoder_lr", *fine_tuned, "region_loss", "region_loss_weight", "pixel_loss")

    def recipe_of(self, values: Mapping[str, Any], epochs: int) -> Recipe:
        """Return the recipe with `values`, and with its schedule scaled to `epochs` epochs."""
        fraction = epochs / self.recipe.train.epochs
        length = {
            "epochs": epochs,
            "warmup_epochs": self.recipe.train.warmup_epochs * fraction,
            "freeze_epochs": int(self.recipe.train.freeze_epochs * fraction),
        }
        model = {name: value for name, value in values.items() if name == "encoder"}
        train = {name: value for name, value in values.items() if name != "encoder"}
        return self.recipe.with_settings(model=model, train=train | length)

    def rungs(self) -> tuple[int, ...]:
        """Return the numbers of epochs that a trial trains for, in ascending order.

        >>> SearchSpace(Recipe(), ()).rungs()
        (3, 5, 10)
        """
        return tuple(sorted({-(-self.recipe.train.epochs // part) for part in RUNG_DIVISORS}))

    def settings(self, fingerprint: str) -> dict[str, Any]:
        """Return everything that a trial's score depends on apart from its number, as JSON types."""
        recipe = asdict(self.recipe)
        train = {name: value for name, value in recipe["train"].items() if name not in SETTINGS_WITHOUT_EFFECT}
        encoders = list(self.encoders)
        return to_json_types({"tiles": fingerprint, "encoders": encoders, "model": recipe["model"], "train": train})

    def learning_rate_range(self, name: str) -> tuple[float, float]:
        """Return the minimum and maximum of the learning rate `name`."""
        rate = getattr(self.recipe.train, name)
        return rate / LEARNING_RATE_SPAN, rate * LEARNING_RATE_SPAN

    def choices(self, name: str) -> tuple[str, ...]:
        """Return the choices of a categorical setting; empty for a number."""
        return {"encoder": self.encoders, "region_loss": REGION_LOSSES, "pixel_loss": PIXEL_LOSSES}.get(name, ())


def _fine_tuned(model: ModelConfig) -> bool:
    return bool(model.start) or (model.architecture != "unet" and model.weights != "none")


REDUCTION_FACTOR = 3
"""Reduction factor of successive halving: one in three trials is promoted."""


@dataclass(frozen=True)
class TrialResult:
    """A finished trial."""

    number: int
    """Counted from 1; trial 1 has the recipe's own settings."""
    values: Values
    scores: Mapping[int, float]
    """Validation IoU by number of epochs."""
    seconds: float
    """Training time."""
    diverged: bool
    """Whether its loss became NaN or infinite."""

    @property
    def epochs(self) -> int:
        """Epochs of its longest training."""
        return max(self.scores)

    @property
    def iou(self) -> float:
        """Validation IoU of its longest training."""
        return self.scores[self.epochs]


def should_promote(iou: float, others: Sequence[float]) -> bool:
    """Return whether a trial is promoted: whether it is in the best third of itself and `others` at the same epochs.

    The best trial so far is always promoted. This is asynchronous successive halving (Li et al., 2020, "A system for
    massively parallel hyperparameter tuning", algorithm 2), except that a stopped trial is never promoted later.

    >>> [should_promote(0.5, others) for others in ([], [0.6], [0.6, 0.4], [0.6, 0.4, 0.4, 0.4, 0.3])]
    [True, False, False, True]
    """
    better = sum(other > iou for other in others)
    return better < max(1, (len(others) + 1) // REDUCTION_FACTOR)


JOURNAL = "journal.log"
NAME = "find"
RANDOM_TRIALS = 6
"""Random trials, including the recipe's own, before TPE starts to model them (n_startup_trials)."""


class Search:
    """The Optuna study of a folder, with an ask-and-tell interface."""

    def __init__(self, out: Path, space: SearchSpace, settings: Mapping[str, Any]) -> None:
        """Open the search in `out`, or create it.

        Raises:
            SettingError: if the search in `out` has other settings.
            InputError: if the journal in `out` cannot be read.
            OutputError: if `out` contains something else, or cannot be written.
        """
        self._space = space
        self._study = _open_study(out, settings)

    @property
    def results(self) -> list[TrialResult]:
        """The finished trials, in order."""
        return [_trial_result(number, trial) for number, trial in enumerate(self._trials_in(*ENDED), start=1)]

    def ask(self) -> tuple[Trial, Values]:
        """Return the next trial and its values; the first one has the recipe's own."""
        for interrupted in self._trials_in(TrialState.RUNNING):
            self._study.tell(interrupted.number, state=TrialState.FAIL)
        finished = len(self._trials_in(*ENDED))
        seed = np.random.SeedSequence([self._space.recipe.train.seed % 2**64, finished]).generate_state(1)[0]
        self._study.sampler = TPESampler(n_startup_trials=RANDOM_TRIALS, seed=int(seed))
        if not finished and not self._trials_in(TrialState.WAITING):
            self._study.enqueue_trial(self._space.default_values())
        trial = self._study.ask()
        values = {name: _suggest(trial, name, self._space) for name in self._space.parameter_names()}
        return trial, values if finished else self._space.default_values()

    def tell(self, trial: Trial, tried: TrialResult, complete: bool) -> None:
        """Store the result of `trial`; `complete` says whether it trained for all epochs."""
        for epochs, iou in tried.scores.items():
            trial.report(iou, epochs)
        for name in ("values", "seconds", "diverged"):
            trial.set_user_attr(name, getattr(tried, name))
        if complete:
            self._study.tell(trial, tried.iou)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)

    def _trials_in(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)


ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def _open_study(out: Path, settings: Mapping[str, Any]) -> optuna.Study:
    journal = out / JOURNAL
    if out.exists() and not journal.is_file() and (out.is_file() or any(out.iterdir())):
        raise OutputError(f"{out} exists and is not a search; nothing was changed. Choose another --out.")
    # Geograft reports the progress of the search itself.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with translate_write_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(storage=storage, study_name=NAME, direction="maximize", load_if_exists=True)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{journal} cannot be read: {error!r}. Remove {out} to start again.") from error
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", dict(settings))
    elif changed := differences(before, settings):
        raise SettingError(
            f"{out} has a search with other settings: {'; '.join(changed[:3])}. Undo that, or choose another --out."
        )
    return study


def _suggest(trial: Trial, name: str, space: SearchSpace) -> str | float:
    """Return Optuna's suggestion for one setting, rounded."""
    choices = space.choices(name)
    if choices:
        return str(trial.suggest_categorical(name, choices))
    if name == "region_loss_weight":
        return round(trial.suggest_float(name, 0.0, 1.0), 2)
    return float(f"{trial.suggest_float(name, *space.learning_rate_range(name), log=True):.{DIGITS}g}")


def _trial_result(number: int, trial: FrozenTrial) -> TrialResult:
    kept = trial.user_attrs
    return TrialResult(number, kept["values"], trial.intermediate_values, kept["seconds"], kept["diverged"])
