from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from geograft.config import ModelConfig, TrainConfig
from geograft.networks.network import Network, build
from geograft.training.optim import (
    Schedule,
    build_optimizer,
    freeze_encoder,
    has_matching_shapes,
    parameter_groups,
    set_learning_rates,
)
from tests.support.training import TinyNetwork

CONFIG = TrainConfig(optimizer="adam", warmup_epochs=0, encoder_lr=1e-4, decoder_lr=1e-3)
ADAMW = replace(CONFIG, optimizer="adamw", weight_decay=0.5, layer_decay=0.5)

NETWORKS = {
    "pretrained": TinyNetwork,
    "two stages frozen": lambda: TinyNetwork(frozen=2),
    "all stages frozen": lambda: TinyNetwork(frozen=5),
    "from scratch": lambda: TinyNetwork(trained=False),
    "the article's": lambda: build(ModelConfig(architecture="unet"), 3, 1),
    "pretrained shape of the article": lambda: build(ModelConfig(), 3, 1, pretrained=False),
}


@pytest.mark.parametrize("config", [CONFIG, ADAMW])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_every_trainable_parameter_is_in_exactly_one_group(make: Callable[[], Network], config: TrainConfig) -> None:
    network = make()
    grouped = [id(p) for group in parameter_groups(network, config) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def by_name(network: TinyNetwork, key: str, config: TrainConfig = CONFIG) -> dict[str, float]:
    """Return `key` of the parameter group of each parameter, by name."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(p)]: group[key] for group in parameter_groups(network, config) for p in group["params"]}


def rates(network: TinyNetwork, config: TrainConfig = CONFIG) -> dict[str, float]:
    return by_name(network, "lr", config)


def test_pretrained_stages_have_the_encoder_rate_and_frozen_ones_none() -> None:
    found = rates(TinyNetwork(frozen=2))
    assert {name: rate for name, rate in found.items() if "stages" in name}.keys() == {
        f"body.stages.{stage}.{layer}.{kind}" for stage in (2, 3, 4) for layer in (0, 1) for kind in ("weight", "bias")
    }
    assert all(rate == (1e-4 if "stages" in name else 1e-3) for name, rate in found.items())


def test_an_encoder_from_scratch_has_the_decoder_rate() -> None:
    assert set(rates(TinyNetwork(trained=False)).values()) == {1e-3}


def test_a_step_changes_trainable_parameters_only() -> None:
    network = TinyNetwork(frozen=2)
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = build_optimizer(network, CONFIG)
    network.train()
    network(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == rates(network).keys()


def test_layer_decay_multiplies_the_rate_of_each_earlier_stage() -> None:
    found = rates(TinyNetwork(frozen=1), replace(CONFIG, layer_decay=0.5))
    weights = [found.get(f"body.stages.{stage}.0.weight") for stage in range(5)]
    assert weights == [None, 1e-4 / 8, 1e-4 / 4, 1e-4 / 2, 1e-4]
    assert found["body.head.weight"] == 1e-3


def test_only_adamw_has_weight_decay_and_not_for_biases_and_norms() -> None:
    assert set(by_name(TinyNetwork(), "weight_decay").values()) == {0.0}
    decays = by_name(TinyNetwork(), "weight_decay", ADAMW)
    assert {name for name, decay in decays.items() if decay == 0.5} == {
        *(f"body.stages.{stage}.0.weight" for stage in range(5)),
        "body.head.weight",
    }


def test_without_gradients_adamw_shrinks_weights_by_rate_times_decay() -> None:
    network = TinyNetwork()
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = build_optimizer(network, ADAMW)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    found = rates(network, ADAMW), by_name(network, "weight_decay", ADAMW)
    for name, value in network.named_parameters():
        torch.testing.assert_close(value, before[name] * (1 - found[0][name] * found[1][name]))


@pytest.mark.parametrize("config", [ADAMW, replace(ADAMW, optimizer="adam")], ids=["adamw", "adam"])
def test_fused_updates_are_the_same_but_for_rounding_and_their_state_can_be_exchanged(config: TrainConfig) -> None:
    networks = TinyNetwork(), TinyNetwork()
    plain, fused = (build_optimizer(network, config, fused=each == 1) for each, network in enumerate(networks))
    images = torch.randn(2, 3, 8, 8)
    for step in range(6):
        for optimizer, network in zip((plain, fused), networks, strict=True):
            optimizer.zero_grad()
            network.eval()(images).square().mean().backward()
            optimizer.step()
        if step == 2:
            fused.load_state_dict(fused.state_dict())
            assert has_matching_shapes(fused)
    assert fused.param_groups[0]["fused"]
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_decoder_group_is_last() -> None:
    assert parameter_groups(TinyNetwork(), ADAMW)[-1]["lr"] == 1e-3


def test_each_group_scales_its_own_rate_by_the_schedule() -> None:
    optimizer = build_optimizer(TinyNetwork(), ADAMW)
    schedule = Schedule(replace(ADAMW, schedule="cosine", epochs=1), 10)
    set_learning_rates(optimizer, schedule, 5)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(group["initial_lr"] / 2)


def test_a_frozen_encoder_is_not_trained_until_it_is_unfrozen() -> None:
    network = TinyNetwork(frozen=2)
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    freeze_encoder(network, 5)
    assert not any(p.requires_grad for p in network.stages.parameters())
    assert not any(module.training for module in network.train().stages.modules() if module is not network.stages)
    freeze_encoder(network, 2)
    assert {name for name, p in network.named_parameters() if p.requires_grad} == trainable
    assert [stage.training for stage in network.train().stages] == [False, False, True, True, True]


def test_a_state_of_other_shapes_is_noticed() -> None:
    network = TinyNetwork()
    optimizer = build_optimizer(network, TrainConfig())
    assert has_matching_shapes(optimizer)
    network(torch.randn(2, 3, 8, 8)).mean().backward()
    optimizer.step()
    assert has_matching_shapes(optimizer)
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = torch.zeros(3)
    optimizer.load_state_dict(state)
    assert not has_matching_shapes(optimizer)
