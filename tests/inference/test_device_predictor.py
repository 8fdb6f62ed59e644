"""What runs on a GPU, here on torch's CPU device: the layers of the NumPy path, in parts where memory is short."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from torch import Tensor

from geograft.card import ModelCard
from geograft.errors import SettingError
from geograft.inference.device_predictor import DeviceMember
from geograft.inference.predictor import EnsembleMember, EnsemblePredictor, Tta, scaled_pixels
from geograft.inference.runners import TileWorkers
from geograft.inference.torch_networks import TorchRunner
from geograft.legend import Legend
from tests.support.exports import BINARY
from tests.support.training import TinyNetwork

CPU = torch.device("cpu")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
LEGENDS = {
    "binary": Legend(("rest", "crown")),
    "exclusive": Legend(("a", "b", "c")),
    "overlapping": Legend(("a", "b", "c"), overlapping=True),
}


def pixels_of(dtype: str, shape: tuple[int, ...], seed: int) -> ndarray:
    """Return pixels over the whole range of integers, or small numbers with some NaN."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        values = rng.normal(100, 50, shape)
        values[rng.random(shape) < 0.1] = np.nan
        return values.astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(DTYPES), st.integers(0, 2**31), st.sampled_from([1.0, 0.7]))
def test_scaling_on_the_device_gives_numpys_bits(dtype: str, seed: int, fraction: float) -> None:
    pixels = pixels_of(dtype, (2, 3, 8, 8), seed)
    valid = np.random.default_rng(seed + 1).random((2, 8, 8)) <= fraction
    mean, std = (90.0, 0.4851, 1234.56), (50.0, 0.2293, 3.3)
    predictor = EnsemblePredictor(card(LEGENDS["binary"]), [member(1)], TileWorkers(1))
    predictor.move_to("cpu", pixels[:1], valid[:1], compiled=None)
    assert predictor.on_device is not None
    batch = predictor.on_device.upload(pixels, valid)
    assert batch.pixels.element_size() == min(4, pixels.itemsize)
    found = DeviceMember.of(TorchRunner(TinyNetwork(), CPU), mean, std, 1.0, CPU).scale(batch.stored(), batch.valid)
    np.testing.assert_array_equal(
        found.numpy().view(np.uint32), scaled_pixels(pixels, valid, mean, std).view(np.uint32)
    )


def card(legend: Legend) -> ModelCard:
    return replace(BINARY, legend=legend, tile_px=16, resolution_m=None, threshold=0.5, temperature=1.0)


def member(outputs: int, seed: int = 0) -> EnsembleMember:
    network = TinyNetwork(outputs=outputs, seed=seed)
    mean, std = (100.0 + seed, 130.0, 140.0), (30.0, 40.0, 50.0 + seed)
    return EnsembleMember(mean, std, 1.3 + seed, TorchRunner(network, CPU))


def pair(legend: Legend, runs: int, tta: Tta, **spread: bool) -> tuple[EnsemblePredictor, EnsemblePredictor]:
    """Return the same ensemble twice, the second one with everything on the device."""
    members = [member(legend.outputs, seed) for seed in range(runs)]
    both = [EnsemblePredictor(card(legend), members, TileWorkers(1), tta=tta, **spread) for _ in range(2)]
    pixels, valid = batch(1)
    assert both[1].move_to("cpu", pixels, valid, compiled=None) == ()
    return both[0], both[1]


def batch(count: int) -> tuple[ndarray, ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, 3, 16, 16), np.uint8), rng.random((count, 16, 16)) < 0.9


@pytest.mark.parametrize("tta", [1, 2, 4, 8])
@pytest.mark.parametrize("legend", LEGENDS)
def test_layers_are_those_of_numpy_but_for_rounding(legend: str, tta: Tta) -> None:
    plain, on_device = pair(LEGENDS[legend], 1, tta)
    found, expected = on_device(*batch(3)), plain(*batch(3))
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("legend", LEGENDS)
def test_ensembles_with_standard_deviation_too(legend: str, views: bool) -> None:
    plain, on_device = pair(LEGENDS[legend], 3, 4, spread=True, spread_views=views)
    found, expected = on_device(*batch(2)), plain(*batch(2))
    assert found.shape[1] == on_device.layers == LEGENDS[legend].outputs + 1
    assert expected[:, -1].max() > 0.01
    np.testing.assert_allclose(found, expected, atol=2e-6)


class SmallMemory(TorchRunner):
    """A network that runs out of memory for more than `room` images."""

    def __init__(self, room: int) -> None:
        super().__init__(TinyNetwork(), CPU)
        self.room, self.released = room, 0
        self.sizes: list[int] = []

    def logits(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().logits(images)

    def release(self) -> None:
        self.released += 1


def short_of_memory(room: int, count: int, tta: Tta = 1) -> tuple[EnsemblePredictor, SmallMemory, Sequence[ndarray]]:
    ample, legend = member(1), LEGENDS["binary"]
    network = SmallMemory(room)
    small = EnsembleMember(ample.mean, ample.std, ample.temperature, network)
    pixels = batch(count)
    expected = EnsemblePredictor(card(legend), [ample], TileWorkers(1), tta=tta)(*pixels)
    predictor = EnsemblePredictor(card(legend), [small], TileWorkers(1), tta=tta)
    return predictor, network, (*pixels, expected)


def test_the_windows_at_once_are_halved_until_they_fit() -> None:
    predictor, network, (pixels, valid, expected) = short_of_memory(room=6, count=13, tta=2)
    predictor.move_to("cpu", pixels, valid, compiled=None)
    # Of 13 windows with two views each: 7, 4, then 2.
    assert network.sizes == [26, 14, 8, 4, 4, 4, 4, 4, 4, 2]
    assert network.released == 3
    assert predictor.on_device is not None and predictor.on_device.windows == 2
    network.sizes.clear()
    np.testing.assert_allclose(predictor(pixels, valid), expected, atol=1e-6)
    assert network.sizes == [4, 4, 4, 4, 4, 4, 2]


def test_memory_that_becomes_short_later_is_answered_too() -> None:
    predictor, network, (pixels, valid, expected) = short_of_memory(room=8, count=8)
    predictor.move_to("cpu", pixels, valid, compiled=None)
    assert predictor.on_device is not None and predictor.on_device.windows == 0
    network.room = 3
    np.testing.assert_allclose(predictor(pixels, valid), expected, atol=1e-6)
    assert predictor.on_device.windows == 2


def test_memory_too_short_for_one_window_is_one_line() -> None:
    predictor, _, (pixels, valid, _) = short_of_memory(room=0, count=4)
    with pytest.raises(SettingError, match="window-px"):
        predictor.move_to("cpu", pixels, valid, compiled=None)


def test_smaller_batches_are_filled_up_for_a_graph_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph takes batches of one shape; where it cannot be captured, the network runs without."""
    shapes: list[int] = []

    class Captured:
        def __init__(self, network: Any, images: Tensor) -> None:
            self.network, self.shape = network, images.shape

        def __call__(self, images: Tensor) -> Tensor:
            assert images.shape == self.shape
            shapes.append(len(images))
            found: Tensor = self.network(images)
            return found

    def fails(_network: Any, _images: Tensor) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    runner = TorchRunner(TinyNetwork(), CPU)
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32))
    expected = runner.logits(images)
    monkeypatch.setattr("geograft.inference.torch_networks.CapturedNetwork", Captured)
    runner.capture(images)
    for count in (4, 1, 3):
        torch.testing.assert_close(runner.logits(images[:count]), expected[:count])
    assert shapes == [4, 4, 4]
    runner.release()
    torch.testing.assert_close(runner.logits(images[:3]), expected[:3])
    assert shapes == [4, 4, 4]
    monkeypatch.setattr("geograft.inference.torch_networks.CapturedNetwork", fails)
    runner.capture(images)
    assert "not permitted when stream is capturing" in runner.note
    torch.testing.assert_close(runner.logits(images), expected)
