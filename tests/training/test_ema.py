import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from geograft.training.optim import EMA_WARMUP, ModelEMA
from tests.support.training import TinyNetwork


def walk(network: TinyNetwork, seed: int) -> None:
    """Move all weights and statistics somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(1)


def test_after_the_first_steps_it_is_torchs_exponential_mean() -> None:
    network = TinyNetwork()
    ours = ModelEMA(network, decay=0.5)
    ours.steps = 8  # from here on (1 + n) / (EARLY + n) is not below 0.5
    assert (1 + ours.steps) / (EMA_WARMUP + ours.steps) == 0.5
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    theirs.n_averaged.fill_(1)  # the mean begins at the first weights, not at the first step's
    for seed in range(5):
        walk(network, seed)
        ours.update(network)
        theirs.update_parameters(network)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours.network.state_dict()[name], value)
        else:
            assert torch.equal(ours.network.state_dict()[name], network.state_dict()[name])


def test_weights_from_before_training_are_soon_forgotten() -> None:
    network = TinyNetwork()
    average = ModelEMA(network, decay=0.9999)
    with torch.no_grad():
        network.body.head.weight.zero_()
    for _ in range(20):
        average.update(network)
    left = average.network.body.head.weight / TinyNetwork().body.head.weight
    expected = torch.tensor([(1 + n) / (EMA_WARMUP + n) for n in range(20)]).prod()
    assert left.flatten().tolist() == pytest.approx([expected.item()] * left.numel())
    assert expected < 1e-5


def test_what_stands_still_stays_to_the_bit() -> None:
    network = TinyNetwork(frozen=2)
    average = ModelEMA(network, decay=0.9)
    for _ in range(30):
        average.update(network)
    for name, value in network.state_dict().items():
        assert torch.equal(average.network.state_dict()[name], value)


def test_it_is_a_network_of_its_own_that_is_not_trained() -> None:
    network = TinyNetwork()
    average = ModelEMA(network, decay=0.9)
    before = average.network.body.head.weight.clone()
    walk(network, 0)
    assert torch.equal(average.network.body.head.weight, before)
    assert not average.network.training
    assert not any(p.requires_grad for p in average.network.parameters())
    assert all(p.requires_grad for p in network.parameters())
