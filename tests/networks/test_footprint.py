import torch
from torch import Tensor, nn

from geograft.config import ModelConfig
from geograft.networks.network import build
from geograft.networks.summary import count_flop, peak_activation_bytes, saved_activation_bytes, weight_bytes

EDGE = 40
MAP = EDGE * EDGE * 4
"""Bytes of one channel."""


def image(channels: int = 1) -> Tensor:
    return torch.rand(1, channels, EDGE, EDGE)


def test_a_convolution_costs_two_flop_a_multiply_add() -> None:
    network = nn.Conv2d(3, 5, kernel_size=3, padding=1)
    assert count_flop(network, image(3)) == 2 * EDGE * EDGE * 5 * 3 * 9


def test_a_transposed_convolution_is_counted_by_its_input() -> None:
    network = nn.ConvTranspose2d(3, 5, kernel_size=2, stride=2)
    assert count_flop(network, image(3)) == 2 * EDGE * EDGE * 3 * 5 * 4


def test_what_is_no_product_is_not_counted() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2))
    assert count_flop(network.eval(), image(3)) == 0


def test_kept_for_backward_is_each_map_once() -> None:
    # The image (for the weights' gradient) and the ReLU's output, which the second convolution keeps too.
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    assert saved_activation_bytes(network, image()) == (1 + 4) * MAP


def test_frozen_parts_keep_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
    network[0].requires_grad_(False)
    assert saved_activation_bytes(network, image()) == 4 * MAP
    assert saved_activation_bytes(network.requires_grad_(False), image()) == 0


class Steps(nn.Module):
    def __init__(self, hold: bool) -> None:
        super().__init__()
        self.hold = hold

    def forward(self, x: Tensor) -> Tensor:
        first = x + 1
        second = first * 2
        if not self.hold:
            del first
        return second.sub_(3).view(-1) * 4


def test_peak_counts_what_is_alive_at_once() -> None:
    assert peak_activation_bytes(Steps(hold=False), image()) == 2 * MAP
    assert peak_activation_bytes(Steps(hold=True), image()) == 3 * MAP


def test_weights_with_their_buffers() -> None:
    assert weight_bytes(nn.BatchNorm2d(10)) == 4 * 10 * 4 + 8


def test_measuring_changes_nothing() -> None:
    network = build(ModelConfig(architecture="transfer", encoder="test_efficientnet"), 3, 1, pretrained=False).train()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    saved_activation_bytes(network, image(3).expand(2, -1, -1, -1))
    peak_activation_bytes(network, image(3))
    assert network.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_two_tiles_keep_twice_as_much_as_one() -> None:
    network = build(ModelConfig(architecture="unet"), 3, 1)
    one, two = (saved_activation_bytes(network, torch.zeros(n, 3, 32, 32)) for n in (1, 2))
    assert 1.95 < two / one <= 2
