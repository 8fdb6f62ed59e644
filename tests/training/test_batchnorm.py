from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor, distributed, nn

from geograft.training.distributed import SyncBatchNormMode


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process: what is shared is its own."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def passed(layer: nn.Module, images: Tensor) -> list[Tensor]:
    """Return output, statistics, and gradients of images, weight and bias after one pass."""
    images = images.clone().requires_grad_()
    output = layer(images)
    (output * torch.linspace(-1, 2, output.numel()).reshape(output.shape)).sum().backward()
    gradients = [value.grad for value in (images, *layer.parameters()) if value.grad is not None]
    return [output.detach(), *layer.buffers(), *gradients]


LAYERS = {
    "torch's": lambda: nn.BatchNorm2d(3),
    "timm's": lambda: timm.layers.BatchNormAct2d(3),
    "without weights": lambda: nn.BatchNorm2d(3, affine=False),
    "without statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "other settings": lambda: nn.BatchNorm2d(3, eps=1e-2, momentum=0.4),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_of_one_process_it_is_torchs_with_all_gradients(layer: str, training: bool) -> None:
    images = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1)) * 7 + 100
    expected = passed(LAYERS[layer]().train(training), images)
    with SyncBatchNormMode():
        found = passed(LAYERS[layer]().train(training), images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("alone")
def test_half_precision_stays_half_and_counts_in_full() -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).bfloat16() + 50
    with SyncBatchNormMode():
        found = nn.BatchNorm2d(3)(images)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), nn.BatchNorm2d(3)(images.float()), rtol=1e-2, atol=1e-2)
