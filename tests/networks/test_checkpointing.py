"""Activation checkpointing gives the gradients, statistics and random numbers of the plain network, to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from geograft.config import ModelConfig
from geograft.losses.segmentation import LossConfig, main_logits
from geograft.networks.network import Network, build
from geograft.training.step import Step
from tests.support.training import TinyNetwork, cpu_group

LIGHT = ModelConfig(encoder="efficientnet_lite0", weights="none", frozen_stages=0)
NETWORKS: dict[str, Callable[[], Network]] = {
    "dropout": TinyNetwork,
    "frozen": lambda: TinyNetwork(frozen=2),
    "light": lambda: build(LIGHT, 3, 1),
    "transfer": lambda: build(ModelConfig("transfer", "mobilenetv3_small_050", "none"), 3, 1),
    "unet": lambda: build(ModelConfig("unet"), 3, 1),
    "one stage": lambda: build(ModelConfig(encoder="test_vit", weights="none"), 3, 1),
}


def trained(build_network: Callable[[], Network], checkpointing: bool) -> dict[str, Any]:
    """Return what two training steps leave."""
    torch.manual_seed(0)
    network = build_network()
    network.set_deep_supervision(enabled=True)
    assert network.set_checkpointing(checkpointing)
    network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images = torch.randn(2, 3, 64, 64)
    for _ in range(2):
        logits = network(images)
        main_logits(logits).square().mean().backward()
    return {
        "gradients": [parameter.grad for parameter in network.parameters()],
        "statistics": list(network.buffers()),
        "random": torch.rand(3),
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpointed_network_trains_with_the_same_bits(name: str) -> None:
    plain, again = (trained(NETWORKS[name], checkpointing) for checkpointing in (False, True))
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def kept_bytes(network: Network) -> int:
    """Return the bytes that a forward pass in training leaves in memory for the backward pass."""
    images = torch.randn(2, 3, 96, 96)
    network.train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        logits = network(images)
    del logits
    return sum(event.self_cpu_memory_usage for event in found.events())


def test_it_keeps_less_than_half_of_the_memory() -> None:
    network = build(LIGHT, 3, 1)
    plain = kept_bytes(network)
    network.set_checkpointing(True)
    assert kept_bytes(network) < plain / 2


class Limited(TinyNetwork):
    """A network that runs out of memory unless it is checkpointed, and with more than `most` tiles."""

    most = 10**9

    def forward(self, image: Tensor) -> Any:
        if not getattr(self.stages[0], "is_checkpointed", False) or len(image) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(image)


@pytest.mark.parametrize(("most", "chunks"), [(4, 1), (2, 2)])
def test_short_memory_is_answered_by_checkpointing_before_batches_are_split(most: int, chunks: int) -> None:
    def step_of(network: Network) -> Step:
        group = cpu_group()
        return Step(group, group.fabric.setup(network.train()), LossConfig(), 2, network=network)

    batch = torch.randn(4, 3, 16, 16), torch.randint(0, 2, (4, 16, 16), dtype=torch.uint8)
    network = Limited()
    network.most = most
    step = step_of(network)
    step.compute_gradients([batch])
    state = step.state_dict()
    assert state == {"chunks": chunks, "checkpointing": True}
    assert len(step.notes()) == 1
    resumed = step_of(TinyNetwork())
    resumed.load_state_dict(state)
    assert (resumed.state_dict(), resumed.notes()) == (state, step.notes())
    with pytest.raises(ValueError, match="checkpointing"):
        resumed.load_state_dict({"chunks": 1, "checkpointing": 3})
