from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

from geograft.errors import SettingError
from geograft.losses.segmentation import LossConfig, segmentation_loss
from geograft.training.step import (
    NonFiniteLossError,
    Step,
    TensorPair,
    chunks_that_fit,
    confusion,
    group_batches,
    is_out_of_memory,
    split_batch,
)
from tests.support.training import TinyNetwork, blocks, cpu_group

CROSS_ENTROPY = LossConfig(region_loss_weight=0.0)


def batch(count: int, seed: int = 0) -> TensorPair:
    """Return a batch of `count` tiles with fewer and fewer labelled pixels."""
    tiles = blocks(count, seed)
    for index, (_, label) in enumerate(tiles):
        label[: index + 1] = 255
    images, labels = zip(*tiles, strict=True)
    return (torch.tensor(np.stack(images)) - 130) / 30, torch.tensor(np.stack(labels))


class Small(TinyNetwork):
    """A network that runs out of memory above `most` tiles."""

    most = 10**9

    def forward(self, image: Tensor) -> Tensor:
        if len(image) > self.most:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return super().forward(image)


def step_of(network: nn.Module, mix: LossConfig = CROSS_ENTROPY) -> Step:
    # Evaluation mode, because batch norm is computed per chunk.
    group = cpu_group()
    return Step(group, group.fabric.setup(network.eval()), mix, 2)


def gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def torchs(batches: list[TensorPair], mix: LossConfig = CROSS_ENTROPY) -> tuple[list[Tensor], list[float]]:
    """Return the gradients of the batches' mean loss, and the losses, from torch."""
    network = TinyNetwork().eval()
    losses = [segmentation_loss(network(images), label, mix) for images, label in batches]
    torch.stack(losses).mean().backward()
    return gradients(network), [loss.item() for loss in losses]


@pytest.mark.parametrize("mix", [CROSS_ENTROPY, LossConfig(region_loss_weight=0.6)])
def test_gradients_of_several_batches_equal_those_of_their_mean_loss(mix: LossConfig) -> None:
    batches = [batch(4, seed) for seed in range(3)]
    network = TinyNetwork()
    step = step_of(network, mix)
    counted = step.read(step.compute_gradients(batches))
    expected, losses = torchs(batches, mix)
    torch.testing.assert_close(gradients(network), expected)
    assert [each.loss for each in counted] == pytest.approx(losses)
    for (images, label), (_, matrix, tiles, _) in zip(batches, counted, strict=True):
        assert (matrix == confusion(network(images), label, 2).numpy()).all()
        assert tiles == 4


@pytest.mark.parametrize("chunks", [2, 3, 5, 8])
def test_a_batch_in_chunks_has_the_cross_entropy_and_gradients_of_the_whole(chunks: int) -> None:
    network = TinyNetwork()
    step = step_of(network)
    step.load_state_dict({"chunks": chunks})
    counted = step.read(step.compute_gradients([batch(5), batch(6, seed=1)]))
    expected, losses = torchs([batch(5), batch(6, seed=1)])
    torch.testing.assert_close(gradients(network), expected)
    assert [each.loss for each in counted] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(("most", "chunks"), [(8, 1), (4, 2), (3, 4), (2, 4), (1, 8)])
def test_out_of_memory_doubles_the_chunks_until_they_fit(most: int, chunks: int) -> None:
    network = Small()
    network.most = most
    step = step_of(network)
    first = step.read(step.compute_gradients([batch(8)]))
    assert step.state_dict() == {"chunks": chunks, "checkpointing": False}
    assert [f"{chunks} chunks" in note for note in step.notes()] == [True] * (chunks > 1)
    expected, losses = torchs([batch(8)])
    torch.testing.assert_close(gradients(network), expected)
    assert first[0].loss == pytest.approx(losses[0], rel=1e-5)


class RunsOutLate(TinyNetwork):
    """A network in training that runs out of memory above `most` tiles, in its last stage of the second batch."""

    most = 10**9

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.body.stages[4].register_forward_pre_hook(self.allocate)

    def allocate(self, _: nn.Module, given: tuple[Tensor]) -> None:
        self.calls += 1
        if len(given[0]) > self.most and self.calls > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("most", "chunks"), [(4, 2), (2, 4)])
def test_a_retry_gives_what_its_chunks_give_at_once_to_the_bit(most: int, chunks: int) -> None:
    """Gradients, losses, batch-norm statistics and random numbers."""
    found = []
    for limit, start in ((most, 1), (10**9, chunks)):
        network = RunsOutLate()
        network.most = limit
        group = cpu_group()
        step = Step(group, group.fabric.setup(network.train()), LossConfig(), 2)
        step.load_state_dict({"chunks": start})
        torch.manual_seed(3)
        results = step.read(step.compute_gradients([batch(8), batch(8, seed=1)]))
        losses = [(each.loss, each.tiles, each.confusion.tolist()) for each in results]
        assert step.chunks == chunks
        found.append((losses, gradients(network), list(network.buffers()), torch.rand(9)))
    (losses, *tensors), (other_losses, *other_tensors) = found
    assert losses == other_losses
    torch.testing.assert_close(tensors, other_tensors, rtol=0, atol=0)


@pytest.mark.parametrize(("most", "chunks"), [(8, 1), (7, 2), (3, 4), (1, 8)])
def test_the_number_of_chunks_is_found_without_a_trace(most: int, chunks: int) -> None:
    network = Small()
    network.most = most
    before = [tensor.clone() for tensor in (*network.buffers(), *network.parameters())]
    torch.manual_seed(5)
    group = cpu_group()
    assert chunks_that_fit(group, network.train(), batch(8), LossConfig()) == chunks
    drawn = torch.rand(5)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(5))
    torch.testing.assert_close([*network.buffers(), *network.parameters()], before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_too_little_memory_for_one_tile_is_found_too() -> None:
    network = Small()
    network.most = 0
    group = cpu_group()
    with pytest.raises(SettingError, match="single tile"):
        chunks_that_fit(group, network.train(), batch(4), LossConfig())


@pytest.mark.parametrize("chunks", [0, -1, 1.5, "2", None])
def test_a_state_with_an_impossible_number_of_chunks_is_refused(chunks: Any) -> None:
    with pytest.raises(ValueError, match="chunks"):
        step_of(TinyNetwork()).load_state_dict({"chunks": chunks})


def test_out_of_memory_with_a_single_tile_is_a_one_line_error() -> None:
    network = Small()
    network.most = 0
    with pytest.raises(SettingError, match="single tile") as caught:
        step_of(network).compute_gradients([batch(4)])
    assert "\n" not in str(caught.value)


def test_out_of_memory_errors_are_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**56, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no")])
def test_other_errors_are_raised_unchanged(error: Exception) -> None:
    class Broken(TinyNetwork):
        def forward(self, image: Tensor) -> Tensor:
            raise error

    with pytest.raises(type(error), match=str(error)):
        step_of(Broken()).compute_gradients([batch(4)])


def test_a_compiler_error_is_a_one_line_error() -> None:
    class Uncompiled(TinyNetwork):
        def forward(self, image: Tensor) -> Tensor:
            raise BackendCompilerFailed("inductor", RuntimeError("no C++ compiler found\nand more"), None)

    with pytest.raises(SettingError, match=r"compile = true: .*--compile") as caught:
        step_of(Uncompiled()).compute_gradients([batch(4)])
    assert "\n" not in str(caught.value)


def test_a_nonfinite_loss_reports_its_batch() -> None:
    bad = batch(4)
    bad[0][2, :, 5, 5] = torch.inf
    bad[1][2, 5, 5] = 1
    with pytest.raises(NonFiniteLossError) as caught:
        step_of(TinyNetwork()).compute_gradients([batch(4), bad])
    assert caught.value.batch == 1
    assert not torch.tensor(caught.value.loss).isfinite()


@given(tiles=st.integers(1, 9), parts=st.integers(1, 12))
def test_chunks_are_the_batch_in_order_and_of_about_equal_size(tiles: int, parts: int) -> None:
    images, label = torch.arange(tiles)[:, None, None, None].float(), torch.zeros(tiles, 1, 1, dtype=torch.uint8)
    found = split_batch((images, label), parts)
    sizes = [len(part) for part, _ in found]
    assert len(found) == min(tiles, parts)
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat([part for part, _ in found]), images)
    assert [len(part) for _, part in found] == sizes


def test_groups_contain_the_batches_in_order() -> None:
    batches = [batch(1, seed) for seed in range(7)]
    for size in (1, 3, 9):
        groups = list(group_batches(iter(batches), size))
        assert [len(group) for group in groups[:-1]] == [size] * (len(groups) - 1)
        found = [images for group in groups for images, _ in group]
        assert all(map(torch.equal, found, [images for images, _ in batches]))
