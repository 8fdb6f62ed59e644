from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from geograft.config import ModelConfig
from geograft.errors import SettingError, WeightsError
from geograft.networks.network import Network, build, pad_to_multiple, padded_size

B0 = ModelConfig(architecture="transfer")
UNET = ModelConfig(architecture="unet")
TINY = ModelConfig(architecture="transfer", encoder="test_efficientnet", weights="none")


def counts(network: nn.Module) -> tuple[int, int]:
    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def train(network: Network, steps: int = 3) -> None:
    torch.manual_seed(1)
    network.train()
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(steps):
        image, target = torch.randn(2, 3, 64, 64) + 1, torch.rand(2, 1, 64, 64).round()
        optimiser.zero_grad()
        binary_cross_entropy_with_logits(network(image), target).backward()
        optimiser.step()


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def test_the_articles_counts() -> None:
    assert counts(build(UNET, 3, 1)) == (441_137, 441_137)
    assert counts(build(B0, 3, 1, pretrained=False)) == (728_949, 726_573)


def test_without_weights_every_stage_is_trained() -> None:
    network = build(ModelConfig(architecture="transfer", weights="none", frozen_stages=2), 3, 1)
    assert counts(network) == (728_949, 728_949)
    assert (network.frozen, network.pretrained_encoder, network.weights_from) == (0, False, "random")
    assert network.input_scaling is None


def test_the_original_unet_ignores_weights_and_frozen_stages() -> None:
    network = build(ModelConfig(architecture="unet", weights="no/such/file", frozen_stages=5), 3, 1)
    assert (network.frozen, network.pretrained_encoder, network.weights_from) == (0, False, "random")
    assert len(network.stages) == 5


@pytest.mark.parametrize("frozen", [0, 1, 3, 5])
def test_frozen_stages_have_no_gradient_and_the_others_do(frozen: int) -> None:
    network = build(
        ModelConfig(architecture="transfer", encoder="test_efficientnet", frozen_stages=frozen), 3, 1, pretrained=False
    )
    train(network, steps=1)
    for i, stage in enumerate(network.stages):
        assert all((p.grad is None) == (i < frozen) for p in stage.parameters())


def test_only_frozen_stages_stay_equal_to_the_bit() -> None:
    network = build(B0, 3, 1, pretrained=False)
    before = [copied(stage) for stage in network.stages]
    train(network)
    for i, (stage, old) in enumerate(zip(network.stages, before, strict=True)):
        moved = [key for key, tensor in stage.state_dict().items() if not torch.equal(tensor, old[key])]
        if i < 2:
            assert not moved
            assert not any(module.training for module in stage.modules())
        else:
            assert {key.rpartition(".")[2] for key in moved} >= {"weight", "bias", "running_mean", "running_var"}


def test_without_frozen_mode_batch_norm_statistics_would_change() -> None:
    network = build(B0, 3, 1, pretrained=False)
    old = copied(network.stages[0])
    network.frozen = 0  # the gradients stay off; only the statistics are let go
    train(network, steps=1)
    assert not torch.equal(network.stages[0].state_dict()["bn1.running_mean"], old["bn1.running_mean"])


def test_training_mode_excludes_the_frozen_stages() -> None:
    network = build(B0, 3, 1, pretrained=False)
    for mode in (True, False, True):
        assert network.train(mode) is network
        assert [stage.training for stage in network.stages] == [False, False, mode, mode, mode]
        assert network.body.head.training == mode


def test_too_many_frozen_stages_are_rejected() -> None:
    with pytest.raises(SettingError, match="frozen_stages = 5: convnext_atto has 4 stages"):
        build(ModelConfig(architecture="transfer", encoder="convnext_atto", frozen_stages=5), 3, 1, pretrained=False)


def test_without_pretrained_weights_the_shape_is_the_same(shared: Path) -> None:
    path = shared / "weights" / "tf_efficientnet_b0_encoder.safetensors"
    real = build(ModelConfig(architecture="transfer", encoder="tf_efficientnet_b0", weights=str(path)), 3, 1)
    shell = build(
        ModelConfig(architecture="transfer", encoder="tf_efficientnet_b0", weights="a file on another computer"),
        3,
        1,
        pretrained=False,
    )
    shell.load_state_dict(real.state_dict())
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(real.eval()(image), shell.eval()(image))
    assert counts(real) == counts(shell) == (728_949, 726_573)
    assert (shell.frozen, shell.pretrained_encoder, shell.weights_from) == (2, True, "not looked up")
    assert real.weights_from == "file tf_efficientnet_b0_encoder.safetensors, sha256 79489ffa7d0d"
    assert real.input_scaling == shell.input_scaling


def test_missing_weights_never_become_random_ones() -> None:
    with pytest.raises(WeightsError):
        build(ModelConfig(architecture="transfer", weights="no/such/file.pth"), 3, 1)


@pytest.mark.parametrize(
    "model", [UNET, ModelConfig(architecture="transfer", weights="none")], ids=["unet", "transfer"]
)
def test_the_seed_decides_the_initial_weights(model: ModelConfig) -> None:
    def built(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build(model, 3, 1).state_dict()

    first, same, other = built(4), built(4), built(5)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["body.head.weight"], other["body.head.weight"])


@settings(deadline=None, max_examples=25)
@given(height=st.integers(1, 70), width=st.integers(1, 70), outputs=st.integers(1, 4))
def test_output_size_equals_input_size(height: int, width: int, outputs: int) -> None:
    network = build(TINY, 2, outputs)
    for mode in (True, False):
        logits = network.train(mode)(torch.randn(1, 2, height, width))
        assert logits.shape == (1, outputs, height, width)
        assert torch.isfinite(logits).all()


def test_sizes_that_are_multiples_are_not_padded() -> None:
    for model in (UNET, TINY):
        network = build(model, 3, 1).eval()
        image = torch.randn(2, 3, 64, 96)
        with torch.no_grad():
            assert torch.equal(network(image), network.body(image))


@settings(deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), multiple=st.sampled_from([1, 4, 16, 32]))
def test_padding_reflects_or_repeats(height: int, width: int, multiple: int) -> None:
    image = torch.rand(1, 2, height, width)
    result = pad_to_multiple(image, multiple)
    below, right = (padded_size(size, multiple) - size for size in (height, width))
    expected = image.numpy()
    for axis, (margin, size) in {2: (below, height), 3: (right, width)}.items():
        widths = [(0, margin if each == axis else 0) for each in range(4)]
        expected = np.pad(expected, widths, mode="reflect" if margin < size else "edge")
    assert np.array_equal(result.numpy(), expected)


@given(size=st.integers(1, 10_000), multiple=st.integers(1, 64))
def test_padded_size_is_the_smallest_possible(size: int, multiple: int) -> None:
    result = padded_size(size, multiple)
    assert result % multiple == 0
    assert result >= max(size, 2 * multiple)
    assert result - multiple < size or result == 2 * multiple
