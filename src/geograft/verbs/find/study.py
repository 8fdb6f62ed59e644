"""Where trials come from and where they are kept: an Optuna study in a text file, journal.log.

Each trial is drawn with a seed of its own, from the trials that ended before it. So a search that was killed draws the
same trial again, and one that is given more trials later draws those that it would have drawn at once. Optuna is an
extra, and this module is imported by those who have it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from geograft.errors import InputError, OutputError, SettingError
from geograft.files import writing
from geograft.making import differences
from geograft.verbs.find.halving import Tried
from geograft.verbs.find.space import DIGITS, Space, Values

JOURNAL = "journal.log"
NAME = "find"
AT_RANDOM = 6
"""Trials, with the recipe's own, that are drawn blindly before Optuna's model of the earlier ones chooses."""


class Search:
    """The trials of the search in a folder, and the next one."""

    def __init__(self, out: Path, space: Space, settings: Mapping[str, Any]) -> None:
        """Open the search in `out`, or begin it.

        Raises:
            SettingError: when the search in `out` is one of other settings.
            InputError: when the journal in `out` cannot be read.
            OutputError: when `out` holds something else, or cannot be written.
        """
        self._space = space
        self._study = _opened(out, settings)

    @property
    def tried(self) -> list[Tried]:
        """The trials that ended, in order."""
        return [_tried(number, trial) for number, trial in enumerate(self._in(*ENDED), start=1)]

    def drawn(self) -> tuple[Trial, Values]:
        """Return the next trial and its settings; the recipe's own for the first one."""
        for killed in self._in(TrialState.RUNNING):
            self._study.tell(killed.number, state=TrialState.FAIL)
        ended = len(self._in(*ENDED))
        seed = np.random.SeedSequence([self._space.recipe.train.seed % 2**64, ended]).generate_state(1)[0]
        self._study.sampler = TPESampler(n_startup_trials=AT_RANDOM, seed=int(seed))
        if not ended and not self._in(TrialState.WAITING):
            self._study.enqueue_trial(self._space.own())
        trial = self._study.ask()
        values = {name: _one(trial, name, self._space) for name in self._space.searched()}
        return trial, values if ended else self._space.own()

    def note(self, trial: Trial, tried: Tried, whole: bool) -> None:
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


def _opened(out: Path, settings: Mapping[str, Any]) -> optuna.Study:
    journal = out / JOURNAL
    if out.exists() and not journal.is_file() and (out.is_file() or any(out.iterdir())):
        raise OutputError(f"{out} exists already and is no search; nothing was changed. Choose another --out.")
    # Geograft says itself how the search goes.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with writing(out):
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


def _one(trial: Trial, name: str, space: Space) -> str | float:
    """Return what Optuna draws for one setting, rounded."""
    choices = space.choices(name)
    if choices:
        return str(trial.suggest_categorical(name, choices))
    if name == "region_weight":
        return round(trial.suggest_float(name, 0.0, 1.0), 2)
    return float(f"{trial.suggest_float(name, *space.rates(name), log=True):.{DIGITS}g}")


def _tried(number: int, trial: FrozenTrial) -> Tried:
    kept = trial.user_attrs
    return Tried(number, kept["values"], trial.intermediate_values, kept["seconds"], kept["lost"])
