import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from geograft.training.optim import EMA_WARMUP, ModelEMA
from tests.support.training import TinyNetwork


def perturb(network: TinyNetwork, seed: int) -> None:
    """Change all weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(1)


def test_after_warm_up_it_equals_torchs_averaged_model() -> None:
    network = TinyNetwork()
    ema = ModelEMA(network, decay=0.5)
    ema.n_averaged.fill_(9)  # eight updates; from here on (1 + n) / (EMA_WARMUP + n) is not below 0.5
    assert (1 + 8) / (EMA_WARMUP + 8) == 0.5
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    theirs.n_averaged.fill_(1)  # start from the initial weights instead of the first update's
    for seed in range(5):
        perturb(network, seed)
        ema.update_parameters(network)
        theirs.update_parameters(network)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ema.network.state_dict()[name], value)
        else:
            assert torch.equal(ema.network.state_dict()[name], network.state_dict()[name])


def test_the_initial_weights_are_soon_forgotten() -> None:
    network = TinyNetwork()
    ema = ModelEMA(network, decay=0.9999)
    with torch.no_grad():
        network.body.head.weight.zero_()
    for _ in range(20):
        ema.update_parameters(network)
    left = ema.network.body.head.weight / TinyNetwork().body.head.weight
    expected = torch.tensor([(1 + n) / (EMA_WARMUP + n) for n in range(20)]).prod()
    assert left.flatten().tolist() == pytest.approx([expected.item()] * left.numel())
    assert expected < 1e-5


def test_constant_weights_stay_bit_identical() -> None:
    network = TinyNetwork(frozen=2)
    ema = ModelEMA(network, decay=0.9)
    for _ in range(30):
        ema.update_parameters(network)
    for name, value in network.state_dict().items():
        assert torch.equal(ema.network.state_dict()[name], value)


def test_the_average_is_a_separate_network_in_evaluation_mode() -> None:
    network = TinyNetwork()
    ema = ModelEMA(network, decay=0.9)
    before = ema.network.body.head.weight.clone()
    perturb(network, 0)
    assert torch.equal(ema.network.body.head.weight, before)
    assert not ema.network.training
    assert not any(p.requires_grad for p in ema.network.parameters())
    assert all(p.requires_grad for p in network.parameters())
