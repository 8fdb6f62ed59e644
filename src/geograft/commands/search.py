"""Where trials come from and where they are kept: an Optuna study in a text file, journal.log.

Each trial is drawn with a seed of its own, from the trials that ended before it. So a search that was killed draws the
same trial again, and one that is given more trials later draws those that it would have drawn at once. Optuna is an
extra, and this module is imported by those who have it.

What a search changes in a recipe, learning rates, losses and encoder, and how long a trial trains.

A trial that ended, and which trials go on to more epochs.
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
"""What a trial sets, by the name of the setting."""
LEARNING_RATE_SPAN = 5.0
"""Learning rates are drawn from a fifth of the recipe's to five times it."""
REGION_LOSSES = ("dice", "tversky", "lovasz")
PIXEL_LOSSES = ("ce", "focal")
RUNG_DIVISORS = (4, 2, 1)
"""A trial trains with a quarter of the epochs, then half, then all."""
DIGITS = 3
"""Of a learning rate that is drawn; finer than any difference it makes, and short in a recipe."""


@dataclass(frozen=True)
class SearchSpace:
    """A recipe, and the encoders to try in it."""

    recipe: Recipe
    encoders: tuple[str, ...]

    @classmethod
    def around(cls, recipe: Recipe, encoders: tuple[str, ...]) -> "SearchSpace":
        """Return the space around `recipe` with `encoders`, or with the recipe's own where none are given.

        Raises:
            SettingError: for encoders in a network that takes none, or whose weights cannot all be had the same way.
        """
        model, several = recipe.model, tuple(dict.fromkeys(encoders))
        if several and (model.architecture == "unet" or model.start):
            what = "start is set" if model.start else "architecture = unet has no encoder"
            raise SettingError(f"--encoders {','.join(several)}: {what}. Leave --encoders out.")
        if len(several) > 1 and model.weights not in ("hub", "none"):
            weights = f"weights = {model.weights!r} are those of one encoder"
            raise SettingError(f"--encoders {','.join(several)}: {weights}. Give --weights hub or none.")
        return cls(replace(recipe, variants=()), several or (model.encoder,))

    def default_values(self) -> Values:
        """Return the recipe's own settings; the first encoder where the recipe's is not among those to try."""
        train, model = self.recipe.train, self.recipe.model
        encoder = model.encoder if model.encoder in self.encoders else self.encoders[0]
        return {name: encoder if name == "encoder" else getattr(train, name) for name in self.parameter_names()}

    def parameter_names(self) -> tuple[str, ...]:
        """Return the names of what is searched; an encoder from scratch has no rate of its own."""
        several = ("encoder",) if len(self.encoders) > 1 or self.encoders[0] != self.recipe.model.encoder else ()
        fine_tuned = ("encoder_lr",) if _fine_tuned(self.recipe.model) else ()
        return (*several, "decoder_lr", *fine_tuned, "region_loss", "region_loss_weight", "pixel_loss")

    def recipe_of(self, values: Mapping[str, Any], epochs: int) -> Recipe:
        """Return the recipe with `values`, with all of its schedule in `epochs` epochs."""
        share = epochs / self.recipe.train.epochs
        length = {
            "epochs": epochs,
            "warmup_epochs": self.recipe.train.warmup_epochs * share,
            "freeze_epochs": int(self.recipe.train.freeze_epochs * share),
        }
        model = {name: value for name, value in values.items() if name == "encoder"}
        train = {name: value for name, value in values.items() if name != "encoder"}
        return self.recipe.with_settings(model=model, train=train | length)

    def rungs(self) -> tuple[int, ...]:
        """Return how many epochs a trial trains at first, then, and at last.

        >>> Space(Recipe(), ()).rungs()
        (3, 5, 10)
        """
        return tuple(sorted({-(-self.recipe.train.epochs // part) for part in RUNG_DIVISORS}))

    def settings(self, fingerprint: str) -> dict[str, Any]:
        """Return all that a trial's score depends on but for its number, as JSON gives it back."""
        recipe = asdict(self.recipe)
        train = {name: value for name, value in recipe["train"].items() if name not in SETTINGS_WITHOUT_EFFECT}
        encoders = list(self.encoders)
        return to_json_types({"tiles": fingerprint, "encoders": encoders, "model": recipe["model"], "train": train})

    def learning_rate_range(self, name: str) -> tuple[float, float]:
        """Return the least and the largest of the learning rate `name`."""
        rate = getattr(self.recipe.train, name)
        return rate / LEARNING_RATE_SPAN, rate * LEARNING_RATE_SPAN

    def choices(self, name: str) -> tuple[str, ...]:
        """Return what the setting `name` is chosen from; nothing where it is a number."""
        return {"encoder": self.encoders, "region_loss": REGION_LOSSES, "pixel_loss": PIXEL_LOSSES}.get(name, ())


def _fine_tuned(model: ModelConfig) -> bool:
    return bool(model.start) or (model.architecture != "unet" and model.weights != "none")


REDUCTION_FACTOR = 3
"""One in so many trials goes on to more epochs."""


@dataclass(frozen=True)
class TrialResult:
    """A trial that ended."""

    number: int
    """Counted from 1; the first one is the recipe's own settings."""
    values: Values
    scores: Mapping[int, float]
    """Validation IoU by number of epochs."""
    seconds: float
    """That its trainings took."""
    diverged: bool
    """Whether its loss became infinite or no number."""

    @property
    def epochs(self) -> int:
        """Epochs of its last training."""
        return max(self.scores)

    @property
    def iou(self) -> float:
        """Validation IoU of its last training."""
        return self.scores[self.epochs]


def should_promote(iou: float, others: Sequence[float]) -> bool:
    """Return whether a trial is among the best third of those that trained so long, `others` before it and itself.

    The best so far always is. This is successive halving as Li et al. (2020), "A system for massively parallel
    hyperparameter tuning", algorithm 2, make it asynchronous, but for one thing: what stopped is not taken up again.

    >>> [goes_on(0.5, others) for others in ([], [0.6], [0.6, 0.4], [0.6, 0.4, 0.4, 0.4, 0.3])]
    [True, False, False, True]
    """
    better = sum(other > iou for other in others)
    return better < max(1, (len(others) + 1) // REDUCTION_FACTOR)


JOURNAL = "journal.log"
NAME = "find"
RANDOM_TRIALS = 6
"""Trials, with the recipe's own, that are drawn blindly before Optuna's model of the earlier ones chooses."""


class Search:
    """The trials of the search in a folder, and the next one."""

    def __init__(self, out: Path, space: SearchSpace, settings: Mapping[str, Any]) -> None:
        """Open the search in `out`, or begin it.

        Raises:
            SettingError: when the search in `out` is one of other settings.
            InputError: when the journal in `out` cannot be read.
            OutputError: when `out` holds something else, or cannot be written.
        """
        self._space = space
        self._study = _open_study(out, settings)

    @property
    def results(self) -> list[TrialResult]:
        """The trials that ended, in order."""
        return [_trial_result(number, trial) for number, trial in enumerate(self._in(*ENDED), start=1)]

    def ask(self) -> tuple[Trial, Values]:
        """Return the next trial and its settings; the recipe's own for the first one."""
        for killed in self._in(TrialState.RUNNING):
            self._study.tell(killed.number, state=TrialState.FAIL)
        ended = len(self._in(*ENDED))
        seed = np.random.SeedSequence([self._space.recipe.train.seed % 2**64, ended]).generate_state(1)[0]
        self._study.sampler = TPESampler(n_startup_trials=RANDOM_TRIALS, seed=int(seed))
        if not ended and not self._in(TrialState.WAITING):
            self._study.enqueue_trial(self._space.default_values())
        trial = self._study.ask()
        values = {name: _suggest(trial, name, self._space) for name in self._space.parameter_names()}
        return trial, values if ended else self._space.default_values()

    def tell(self, trial: Trial, tried: TrialResult, whole: bool) -> None:
        """Keep what `trial` gave; `whole` is whether it trained with all epochs."""
        for epochs, iou in tried.scores.items():
            trial.report(iou, epochs)
        for name in ("values", "seconds", "lost"):
            trial.set_user_attr(name, getattr(tried, name))
        if whole:
            self._study.tell(trial, tried.iou)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)

    def _in(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)


ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def _open_study(out: Path, settings: Mapping[str, Any]) -> optuna.Study:
    journal = out / JOURNAL
    if out.exists() and not journal.is_file() and (out.is_file() or any(out.iterdir())):
        raise OutputError(f"{out} exists already and is no search; nothing was changed. Choose another --out.")
    # Geograft says itself how the search goes.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with translate_write_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(storage=storage, study_name=NAME, direction="maximize", load_if_exists=True)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{journal} cannot be understood: {error!r}. Remove {out} to begin anew.") from error
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", dict(settings))
    elif changed := differences(before, settings):
        raise SettingError(f"{out} is another search: {'; '.join(changed[:3])}. Undo that, or choose another --out.")
    return study


def _suggest(trial: Trial, name: str, space: SearchSpace) -> str | float:
    """Return what Optuna draws for one setting, rounded."""
    choices = space.choices(name)
    if choices:
        return str(trial.suggest_categorical(name, choices))
    if name == "region_loss_weight":
        return round(trial.suggest_float(name, 0.0, 1.0), 2)
    return float(f"{trial.suggest_float(name, *space.learning_rate_range(name), log=True):.{DIGITS}g}")


def _trial_result(number: int, trial: FrozenTrial) -> TrialResult:
    kept = trial.user_attrs
    return TrialResult(number, kept["values"], trial.intermediate_values, kept["seconds"], kept["lost"])
