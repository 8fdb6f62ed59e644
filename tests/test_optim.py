from collections.abc import Callable

import pytest
import torch

from tilth.config import ModelConfig
from tilth.learn.networks import Network, build
from tilth.learn.optim import adam, decay, parameter_groups
from training import TinyNetwork

NETWORKS = {
    "pretrained": TinyNetwork,
    "two stages frozen": lambda: TinyNetwork(frozen=2),
    "all stages frozen": lambda: TinyNetwork(frozen=5),
    "from scratch": lambda: TinyNetwork(trained=False),
    "the article's": lambda: build(ModelConfig(architecture="unet"), 3, 1),
    "pretrained shape of the article": lambda: build(ModelConfig(), 3, 1, pretrained=False),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_every_trainable_parameter_is_in_exactly_one_group(make: Callable[[], Network]) -> None:
    network = make()
    grouped = [id(p) for group in parameter_groups(network, 1e-4, 1e-3) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def rates(network: TinyNetwork) -> dict[str, float]:
    """Return the learning rate by parameter name."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(p)]: group["lr"] for group in parameter_groups(network, 1e-4, 1e-3) for p in group["params"]}


def test_pretrained_stages_learn_slowly_and_frozen_ones_not_at_all() -> None:
    found = rates(TinyNetwork(frozen=2))
    assert {name: rate for name, rate in found.items() if "stages" in name}.keys() == {
        f"body.stages.{stage}.{layer}.{kind}" for stage in (2, 3, 4) for layer in (0, 1) for kind in ("weight", "bias")
    }
    assert all(rate == (1e-4 if "stages" in name else 1e-3) for name, rate in found.items())


def test_an_encoder_from_scratch_learns_at_the_decoders_rate() -> None:
    assert set(rates(TinyNetwork(trained=False)).values()) == {1e-3}


def test_a_step_moves_what_is_trained_and_nothing_else() -> None:
    network = TinyNetwork(frozen=2)
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = adam(network, 1e-4, 1e-3)
    network.train()
    network(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == rates(network).keys()


def test_rates_fall_as_torchs_exponential_schedule_has_them() -> None:
    ours, theirs = (adam(TinyNetwork(), 1.5e-4, 5e-4) for _ in range(2))
    schedule = torch.optim.lr_scheduler.ExponentialLR(theirs, 0.85)
    for _ in range(10):
        theirs.step()
        schedule.step()
        decay(ours, 0.85)
        assert [group["lr"] for group in ours.param_groups] == schedule.get_last_lr()
