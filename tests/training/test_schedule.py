import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from geograft.config import TrainConfig
from geograft.training.optim import Schedule

BASE_LR = 5e-4


def schedule_of(epoch_steps: int = 7, **settings: float | str) -> Schedule:
    return Schedule(TrainConfig(**{"schedule": "exponential", "warmup_epochs": 0, **settings}), epoch_steps)  # type: ignore[arg-type]


def torchs(make: type[lr_scheduler.LRScheduler], steps: int, **settings: float) -> list[float]:
    """Return the learning rates of one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], BASE_LR)
    schedule, rates = make(optimizer, **settings), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_exponential_equals_torchs_bit_for_bit() -> None:
    schedule = schedule_of(lr_decay=0.85)
    expected = torchs(lr_scheduler.ExponentialLR, 10, gamma=0.85)
    assert [schedule.learning_rate(BASE_LR, 7 * epoch) for epoch in range(10)] == expected
    assert [schedule.learning_rate(BASE_LR, 7 * epoch + 6) for epoch in range(10)] == expected


def test_cosine_equals_torchs_by_step() -> None:
    schedule = schedule_of(schedule="cosine", epochs=4)
    expected = torchs(lr_scheduler.CosineAnnealingLR, 28, T_max=28)
    assert [schedule.learning_rate(BASE_LR, step) for step in range(28)] == pytest.approx(expected, rel=1e-9)
    assert schedule.learning_rate(BASE_LR, 28) == 0


def test_constant_is_constant() -> None:
    assert {schedule_of(schedule="constant").learning_rate(BASE_LR, step) for step in range(100)} == {BASE_LR}


def test_warm_up_equals_torchs_linear_lr() -> None:
    schedule = schedule_of(schedule="constant", warmup_epochs=2)
    rates = [schedule.learning_rate(BASE_LR, step) for step in range(20)]
    assert rates[:14] == pytest.approx(torchs(lr_scheduler.LinearLR, 14, start_factor=1 / 14, total_iters=13))
    assert set(rates[13:]) == {BASE_LR}


def test_half_an_epoch_of_warm_up() -> None:
    schedule = schedule_of(epoch_steps=8, schedule="constant", warmup_epochs=0.5)
    assert [schedule.learning_rate(1.0, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@given(
    kind=st.sampled_from(["exponential", "cosine", "constant"]),
    epochs=st.integers(1, 20),
    epoch_steps=st.integers(1, 50),
    warmup=st.floats(0, 30),
)
def test_rates_are_positive_bounded_and_decreasing_after_warm_up(
    kind: str, epochs: int, epoch_steps: int, warmup: float
) -> None:
    schedule = schedule_of(epoch_steps, schedule=kind, epochs=epochs, warmup_epochs=warmup)
    rates = [schedule.learning_rate(1.0, step) for step in range(epochs * epoch_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    after = rates[int(warmup * epoch_steps) :]
    assert after == sorted(after, reverse=True)
