import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from geograft.config import TrainConfig
from geograft.training.optim import Schedule

FULL = 5e-4


def of(epoch_steps: int = 7, **settings: float | str) -> Schedule:
    return Schedule(TrainConfig(**{"schedule": "exponential", "warmup_epochs": 0, **settings}), epoch_steps)  # type: ignore[arg-type]


def torchs(make: type[lr_scheduler.LRScheduler], steps: int, **settings: float) -> list[float]:
    """Return the rates that one of torch's schedules gives."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], FULL)
    schedule, rates = make(optimizer, **settings), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_exponential_is_torchs_to_the_bit_by_epoch() -> None:
    schedule = of(lr_decay=0.85)
    expected = torchs(lr_scheduler.ExponentialLR, 10, gamma=0.85)
    assert [schedule.learning_rate(FULL, 7 * epoch) for epoch in range(10)] == expected
    assert [schedule.learning_rate(FULL, 7 * epoch + 6) for epoch in range(10)] == expected


def test_cosine_is_torchs_by_step() -> None:
    schedule = of(schedule="cosine", epochs=4)
    expected = torchs(lr_scheduler.CosineAnnealingLR, 28, T_max=28)
    assert [schedule.learning_rate(FULL, step) for step in range(28)] == pytest.approx(expected, rel=1e-9)
    assert schedule.learning_rate(FULL, 28) == 0


def test_constant_is_constant() -> None:
    assert {of(schedule="constant").learning_rate(FULL, step) for step in range(100)} == {FULL}


def test_warm_up_rises_by_the_same_amount_with_each_step() -> None:
    schedule = of(schedule="constant", warmup_epochs=2)
    rates = [schedule.learning_rate(FULL, step) for step in range(20)]
    assert rates[:14] == pytest.approx(torchs(lr_scheduler.LinearLR, 14, start_factor=1 / 14, total_iters=13))
    assert set(rates[13:]) == {FULL}


def test_half_an_epoch_of_warm_up() -> None:
    schedule = of(epoch_steps=8, schedule="constant", warmup_epochs=0.5)
    assert [schedule.learning_rate(1.0, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@given(
    kind=st.sampled_from(["exponential", "cosine", "constant"]),
    epochs=st.integers(1, 20),
    epoch_steps=st.integers(1, 50),
    warmup=st.floats(0, 30),
)
def test_rates_lie_between_zero_and_full_and_only_fall_after_warm_up(
    kind: str, epochs: int, epoch_steps: int, warmup: float
) -> None:
    schedule = of(epoch_steps, schedule=kind, epochs=epochs, warmup_epochs=warmup)
    rates = [schedule.learning_rate(1.0, step) for step in range(epochs * epoch_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    after = rates[int(warmup * epoch_steps) :]
    assert after == sorted(after, reverse=True)
