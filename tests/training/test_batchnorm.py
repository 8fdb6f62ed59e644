from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor, distributed, nn

from geograft.training.distributed import SyncBatchNormMode


@pytest.fixture
def single_process() -> Iterator[None]:
    """A process group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def run_layer(layer: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the output, the statistics, and the gradients of images, weight and bias after one pass."""
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


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_in_one_process_output_and_gradients_equal_torchs(layer: str, training: bool) -> None:
    images = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1)) * 7 + 100
    expected = run_layer(LAYERS[layer]().train(training), images)
    with SyncBatchNormMode():
        found = run_layer(LAYERS[layer]().train(training), images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("single_process")
def test_bfloat16_input_is_normalised_in_float32() -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).bfloat16() + 50
    with SyncBatchNormMode():
        found = nn.BatchNorm2d(3)(images)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), nn.BatchNorm2d(3)(images.float()), rtol=1e-2, atol=1e-2)
