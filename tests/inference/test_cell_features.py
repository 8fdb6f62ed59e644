"""Features of cells: means of the outputs of the encoder's stages."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from geograft.card import WEIGHTS, read_card
from geograft.config import ModelConfig
from geograft.inference.embedding import feature_rows, load_cell_encoder, valid_cells
from geograft.inference.torch_networks import CellFeatures
from geograft.networks.network import Network, build
from tests.support.rasters import textured
from tests.support.runs import make_run

MODELS = {"unet": ModelConfig(architecture="unet"), "transfer": ModelConfig(weights="none")}


@pytest.fixture(scope="module", params=MODELS)
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    return build(MODELS[request.param], 3, 1).eval()


def image(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def cell_features(network: Network, images: Tensor, cell_px: int) -> Tensor:
    with torch.inference_mode():
        found: Tensor = CellFeatures(network, cell_px)(images)
    return found


def stage_maps(network: Network, images: Tensor) -> list[Tensor]:
    """Return the outputs of the stages in the network's forward pass."""
    maps: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda _m, _i, out: maps.append(out)) for stage in network.stages]
    with torch.inference_mode():
        network(images)
    for hook in hooks:
        hook.remove()
    return maps


def test_features_are_cell_means_of_the_stage_outputs(network: Network) -> None:
    images = image(64, 96)
    found = cell_features(network, images, 32)
    maps = stage_maps(network, images)
    assert found.shape == (2, sum(one.shape[1] for one in maps), 2, 3)
    for row, col in ((0, 0), (1, 2)):
        expected = []
        for one in maps:
            px = 32 * one.shape[3] // 96
            expected.append(one[:, :, row * px : (row + 1) * px, col * px : (col + 1) * px].mean(dim=(2, 3)))
        assert torch.allclose(found[:, :, row, col], torch.cat(expected, dim=1), atol=1e-5)


@pytest.mark.parametrize(("height", "width", "rows", "cols"), [(32, 32, 1, 1), (33, 70, 2, 3), (10, 64, 1, 2)])
def test_every_pixel_is_in_a_cell(network: Network, height: int, width: int, rows: int, cols: int) -> None:
    assert cell_features(network, image(height, width), 32).shape[2:] == (rows, cols)
    assert valid_cells(np.ones((2, height, width), bool), 32).shape == (2, rows, cols)


def test_cells_must_fit_the_stride(network: Network) -> None:
    with pytest.raises(ValueError, match=r"pixels.* stride, "):
        cell_features(network, image(64, 64), 24)


def test_cells_that_are_half_valid_have_features() -> None:
    valid = np.zeros((1, 64, 80), bool)
    valid[0, :16, :32] = True
    valid[0, :15, 32:64] = True
    valid[0, 32:, 64:] = True
    # The last column of cells lies half outside of the image.
    assert valid_cells(valid, 32).tolist() == [[[True, False, False], [False, False, True]]]


def test_feature_rows_are_in_order() -> None:
    features = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    known = np.array([[[True, False, True], [False, True, False]]])
    assert feature_rows(features, known).tolist() == [[0, 6], [2, 8], [4, 10]]


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_frames_with_incomplete_cells_run_on_every_backend(backend: str, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(backend, backend), reason=f"the extra {backend} is not installed")
    run = make_run(tmp_path / "run", tile_px=80, stride=16)
    torch.manual_seed(0)
    save_file(build(read_card(run).model, 3, 1).state_dict(), run / WEIGHTS)
    pixels = textured(3, 80, 80)[None]
    valid = np.ones((1, 80, 80), bool)
    expected, cells = load_cell_encoder(run, read_card(run), "cpu", "torch", frame_px=80)(pixels, valid)
    found, same = load_cell_encoder(run, read_card(run), "cpu", backend, frame_px=80)(pixels, valid)
    assert cells.shape == same.shape == (1, 2, 2)
    assert np.abs(found - expected).max() < 1e-3
