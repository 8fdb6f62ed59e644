"""How learning rates move over the steps of a run. Imports no torch: a rate is a function of the step alone."""

import math
from dataclasses import dataclass

from geograft.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Learning rates by step of the optimizer, counted from 0 over the whole run.

    Without state: a run that goes on in its middle finds its rate from its step.
    """

    config: TrainConfig
    epoch_steps: int
    """Steps of the optimizer in one epoch."""

    def rate(self, full: float, step: int) -> float:
        """Return the learning rate at `step` of what has the rate `full` once warm-up is over."""
        if self.config.schedule == "exponential":
            full = _fallen(full, self.config.lr_decay, step // self.epoch_steps)
        if self.config.schedule == "cosine":
            full *= 0.5 * (1 + math.cos(math.pi * self._past(step)))
        return full * self._warmth(step)

    @property
    def _warm_steps(self) -> float:
        return self.config.warmup_epochs * self.epoch_steps

    def _warmth(self, step: int) -> float:
        """Return the share of the full rate: it rises by the same amount with each step, and the first has some."""
        return min(1.0, (step + 1) / self._warm_steps) if self._warm_steps else 1.0

    def _past(self, step: int) -> float:
        """Return the share of the steps after warm-up that lie behind `step`: 0 to 1."""
        rest = self.config.epochs * self.epoch_steps - self._warm_steps
        return min(1.0, max(0.0, step - self._warm_steps) / rest) if rest > 0 else 0.0


def _fallen(full: float, factor: float, times: int) -> float:
    # One product after another, as torch's ExponentialLR has it: a power differs in the last bit.
    for _ in range(times):
        full *= factor
    return full
