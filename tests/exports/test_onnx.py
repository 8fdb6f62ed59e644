"""ONNX files in ONNX Runtime: any size, any number of images, a mask that may be left out, and the card inside."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

import geograft
from geograft.card import read_card
from geograft.commands.export import export
from geograft.inference.predictor import EnsemblePredictor
from tests.exports.test_program import images, reference
from tests.support.exports import BINARY, KINDS, TF_MODEL, make_run, tiny

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

SCENE = Path(geograft.__file__).parent / "data" / "yellowstone" / "elsewhere.tif"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a default network with TensorFlow-like padding, and its run."""
    folder = tmp_path_factory.mktemp("default")
    make_run(folder / "run", BINARY, model=TF_MODEL, mean=(110.0, 110.0, 90.0), std=(45.0, 40.0, 35.0))
    export(folder / "run", folder / "run.onnx")
    return folder


def session(path: Path) -> "onnxruntime.InferenceSession":
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_probabilities_of_real_tiles_are_torchs_at_several_sizes(network: Path) -> None:
    own = session(network / "run.onnx")
    assert [(each.name, each.shape[1]) for each in own.get_inputs()] == [("image", 3)]
    predict = EnsemblePredictor.load([network / "run"], device="cpu", backend="torch")
    with rasterio.open(SCENE) as scene:
        for side, count in ((64, 1), (160, 3), (224, 2)):
            corners = [(97 * number, 131 * number) for number in range(count)]
            pixels = np.stack([scene.read(window=((r, r + side), (c, c + side))) for r, c in corners])
            valid = np.ones((count, side, side), bool)
            found = own.run(None, {"image": pixels.astype(np.float32)})[0]
            expected = predict(pixels, valid)
            assert expected.std() > 0.01
            np.testing.assert_allclose(found, expected, atol=1e-4)
            valid[:, 10:40, 5:30] = False
            masked = own.run(None, {"image": pixels.astype(np.float32), "valid": valid})[0]
            np.testing.assert_allclose(masked, predict(pixels, valid), atol=1e-4)
            assert np.abs(masked - found).max() > 1e-3


def test_height_and_width_may_differ_and_must_be_multiples_of_the_stride(network: Path) -> None:
    own = session(network / "run.onnx")
    image = np.random.default_rng(0).normal(100, 40, (1, 3, 160, 160)).astype(np.float32)
    wide = own.run(None, {"image": image[:, :, :96]})[0]
    assert wide.shape == (1, 1, 96, 160)
    tall = own.run(None, {"image": image[:, :, :, :96]})[0]
    assert tall.shape == (1, 1, 160, 96)
    with pytest.raises(Exception, match=r"image|shape|dimension"):
        own.run(None, {"image": image[:, :, :150, :150]})


def test_the_file_tells_what_is_needed_to_use_it(network: Path) -> None:
    model = onnx.load(network / "run.onnx")
    assert (model.ir_version, [each.version for each in model.opset_import if not each.domain]) == (9, [18])
    told = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    card = read_card(network / "run")
    assert told["geograft_card"] == json.loads(json.dumps(card.content))
    assert told["class_names"] == list(card.legend.names)
    assert told["thresholds"] == [0.4]
    assert (told["band_names"], told["stride_px"], told["window_px"]) == (["red", "green", "blue"], 32, 32)


def test_indices_are_computed_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.inference.torch_networks.build", tiny)
    run = make_run(tmp_path / "run", KINDS["four bands and an index"], tiny)
    export(run, tmp_path / "a.onnx")
    own = session(tmp_path / "a.onnx")
    pixels, valid = images(read_card(run), 2, 24)
    pixels[:, (0, 3), 12:14] = 0  # 0 / 0
    assert own.get_inputs()[0].shape[1] == 4
    found = own.run(None, {"image": pixels, "valid": valid})[0]
    np.testing.assert_allclose(found, reference(run, pixels, valid), atol=1e-4)


def test_a_file_that_disagrees_with_torch_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geograft.errors import InputError
    from geograft.exports import onnx as files

    monkeypatch.setattr("geograft.inference.torch_networks.build", tiny)
    run = make_run(tmp_path / "run", BINARY, tiny)
    real = files.open_onnx
    for wrong in (0.001, float("nan")):
        monkeypatch.setattr(files, "open_onnx", lambda path, wrong=wrong: lambda *given: real(path)(*given) + wrong)
        with pytest.raises(InputError, match=r"0\.0001"):
            export(run, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    shutil.rmtree(run)
