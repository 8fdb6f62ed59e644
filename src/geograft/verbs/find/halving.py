"""A trial that ended, and which trials go on to more epochs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from geograft.verbs.find.space import Values

KEEP = 3
"""One in so many trials goes on to more epochs."""


@dataclass(frozen=True)
class Tried:
    """A trial that ended."""

    number: int
    """Counted from 1; the first one is the recipe's own settings."""
    values: Values
    scores: Mapping[int, float]
    """Validation IoU by number of epochs."""
    seconds: float
    """That its trainings took."""
    lost: bool
    """Whether its loss became infinite or no number."""

    @property
    def epochs(self) -> int:
        """Epochs of its last training."""
        return max(self.scores)

    @property
    def iou(self) -> float:
        """Validation IoU of its last training."""
        return self.scores[self.epochs]


def goes_on(iou: float, others: Sequence[float]) -> bool:
    """Return whether a trial is among the best third of those that trained so long, `others` before it and itself.

    The best so far always is. This is successive halving as Li et al. (2020), "A system for massively parallel
    hyperparameter tuning", algorithm 2, make it asynchronous, but for one thing: what stopped is not taken up again.

    >>> [goes_on(0.5, others) for others in ([], [0.6], [0.6, 0.4], [0.6, 0.4, 0.4, 0.4, 0.3])]
    [True, False, False, True]
    """
    better = sum(other > iou for other in others)
    return better < max(1, (len(others) + 1) // KEEP)
