"""Blending on a device, here torch's CPU: given the same layers, the bits of NumPy's blending."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.card import WEIGHTS, ModelCard
from geograft.commands.predict import predict
from geograft.config import InferenceConfig, PredictConfig
from geograft.errors import InputError, SettingError
from geograft.inference.device_predictor import DeviceBatch, DevicePredictor
from geograft.inference.predictor import EnsemblePredictor
from geograft.legend import Legend
from geograft.mapping.blend import Strip
from geograft.mapping.device_blend import SumStream, TensorSums
from geograft.mapping.plan import plan_blend
from geograft.mapping.sums import FULL_SUM, ArraySums, Model
from geograft.mapping.windows import TileGrid
from geograft.training.checkpoint import save_weights
from tests.support.blending import GRIDS, PANELS, Scene, batch_dependent, blend_strips, constant, noise, pointwise
from tests.support.exports import BINARY
from tests.support.rasters import textured, write_raster
from tests.support.runs import COVERS, TREES, USES, make_run
from tests.support.training import TinyNetwork

SEVERAL = settings(deadline=None, max_examples=30)
CPU = torch.device("cpu")


class OnDevice(EnsemblePredictor):
    """A model of arrays as one on a device."""

    def __init__(self, model: Model) -> None:
        class Predictor(DevicePredictor):
            def layers(self, batch: DeviceBatch) -> torch.Tensor:
                return torch.from_numpy(model(batch.stored().numpy(), batch.valid.numpy()))

        self.on_device = Predictor([], CPU)


def run(tiles: TileGrid, scene: Scene, model: Model, panel_px: int, start: Sequence[Strip], **cut: int) -> list[Strip]:
    return blend_strips(tiles, scene, model, panel_px=panel_px, finished=start, **cut)


def check_equal(found: Sequence[Strip], expected: Sequence[Strip]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.lane, one.window, one.tiles, one.data) == (other.lane, other.window, other.tiles, other.data)
        np.testing.assert_array_equal(one.sums.array, other.sums.array)
        assert one.sums.array.dtype == np.uint32
        np.testing.assert_array_equal(one.mapped, other.mapped)
        assert (one.carry_over is None) == (other.carry_over is None)
        if one.carry_over is not None:
            assert one.carry_over.dtype == np.uint32
            np.testing.assert_array_equal(one.carry_over, other.carry_over)


@SEVERAL
@given(GRIDS, st.integers(1, 9), PANELS, st.integers(0, 2**31), st.integers(0, 9))
@example(TileGrid(27, 36, 16, 0.1), 1, 1, 48, 3)
def test_strips_and_carry_overs_have_numpys_bits(
    tiles: TileGrid, batch_size: int, panel_px: int, seed: int, finished: int
) -> None:
    valid = np.random.default_rng(seed).random((tiles.height, tiles.width)) < 0.4
    scene = Scene(noise(1, tiles.height, tiles.width), valid)
    expected = run(tiles, scene, batch_dependent, panel_px, [], batch_size=batch_size)
    model = OnDevice(batch_dependent)
    check_equal(run(tiles, scene, model, panel_px, [], batch_size=batch_size), expected)
    # Resumed from strips of the other path.
    start = expected[: min(finished, len(expected))]
    check_equal(run(tiles, scene, model, panel_px, start, batch_size=batch_size), expected)


@SEVERAL
@given(GRIDS, PANELS)
def test_several_layers_have_numpys_bits(tiles: TileGrid, panel_px: int) -> None:
    scene = Scene(noise(2, tiles.height, tiles.width))
    expected = run(tiles, scene, pointwise, panel_px, [], layers=2)
    check_equal(run(tiles, scene, OnDevice(pointwise), panel_px, [], layers=2), expected)


@SEVERAL
@given(st.integers(0, 2**31), st.integers(1, 5), st.floats(0.001, 0.999), st.booleans())
def test_the_values_of_maps_have_numpys_bits(seed: int, layers: int, threshold: float, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    sums = rng.integers(0, FULL_SUM, (layers, 9, 11), np.uint32, endpoint=True)
    if ties:
        sums = sums // np.uint32(2**30) * np.uint32(2**30)
    sums[0, 0, 0], sums[0, 0, 1] = 0, FULL_SUM
    expected, found = ArraySums(sums), TensorSums(torch.from_numpy(sums.astype(np.int64)), SumStream(CPU))
    thresholds = (threshold,) * layers
    pairs: list[tuple[ndarray, ndarray]] = [
        (found.array, expected.array),
        (found.layers(), expected.layers()),
        (found.layers(slice(-1, None)), expected.layers(slice(-1, None))),
        (found.at_least(*thresholds), expected.at_least(*thresholds)),
        (found.most_probable(layers), expected.most_probable(layers)),
        (found.probabilities(layers, layers == 1), expected.probabilities(layers, layers == 1)),
    ]
    for dtype, maximum in (("uint8", 250), ("float16", 1)):
        options = (layers, layers == 1, dtype, maximum)
        pairs.append((found.encoded_probabilities(*options), expected.encoded_probabilities(*options)))  # type: ignore[arg-type]
    for one, other in pairs:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_nan_is_refused() -> None:
    tiles = TileGrid(20, 20, 16, 0.5)
    with pytest.raises(InputError, match="NaN"):
        run(tiles, Scene(noise(1, 20, 20)), OnDevice(constant(float("nan"))), 10**9, [])


def test_memory_too_short_for_the_sums_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr("geograft.mapping.device_blend.torch.zeros", short)
    with pytest.raises(SettingError, match=r"2\.00 GiB.*--batch-size") as caught:
        run(TileGrid(20, 20, 16, 0.5), Scene(noise(1, 20, 20)), OnDevice(constant(0.5)), 10**9, [])
    assert "\n" not in str(caught.value)


def test_batches_are_larger_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = replace(read_card_of(TREES), tile_px=640)
    sizes = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setattr("geograft.mapping.plan.backend_device", lambda *_, device=device: device)
        small, large = (plan_blend((5000, 5000), bands, card, InferenceConfig(), 1).batch_size for bands in (3, 26))
        sizes[device] = small, large
        assert plan_blend((5000, 5000), 3, card, InferenceConfig(batch_size=5), 1).batch_size == 5
    assert sizes == {"cpu": (8, 3), "cuda": (64, 12)}


@pytest.mark.parametrize("legend", [TREES, COVERS, USES], ids=["binary", "exclusive", "overlapping"])
def test_a_map_made_on_the_device_is_that_of_numpy(
    legend: Legend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any, **__: Any) -> TinyNetwork:
        return TinyNetwork(outputs=legend.outputs)

    monkeypatch.setattr("geograft.inference.torch_networks.build", build)
    runs = [make_run(tmp_path / f"run{seed}", legend) for seed in range(2)]
    for seed, run_folder in enumerate(runs):
        network = TinyNetwork(outputs=legend.outputs, seed=seed)
        with torch.no_grad():
            network.body.head.weight *= 5
            network.body.head.bias.zero_()
        save_weights(run_folder / WEIGHTS, network)
    scene = write_raster(tmp_path / "scene.tif", textured(3, 150, 170))
    wanted = PredictConfig(backend="torch", device="cpu", tta=2, probabilities="uint8", uncertainty=True)
    predict(runs, (scene,), tmp_path / "plain.tif", wanted)

    class OnCpuDevice(EnsemblePredictor):
        @classmethod
        def load(cls, runs: Sequence[Path], **options: Any) -> EnsemblePredictor:
            found = super().load(runs, **options)
            assert found.move_to("cpu", *options["sample"], compiled=None) == ()
            return found

    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", OnCpuDevice)
    predict(runs, (scene,), tmp_path / "device.tif", wanted)
    for kind, allowed in (("", 0), (".probabilities", 1), (".uncertainty", 1)):
        with rasterio.open(tmp_path / f"plain{kind}.tif") as one, rasterio.open(tmp_path / f"device{kind}.tif") as two:
            plain, device = one.read().astype(int), two.read().astype(int)
        assert len(np.unique(plain)) > (10 if kind else 0)
        differences = np.abs(plain - device)
        assert (differences > allowed).mean() <= (0.0002 if kind == "" else 0)


def read_card_of(legend: Legend) -> ModelCard:
    card = replace(BINARY, legend=legend, mean=(90.0,) * 3, std=(50.0,) * 3)
    return replace(card, resolution_m=None, threshold=0.5, temperature=1.0)
