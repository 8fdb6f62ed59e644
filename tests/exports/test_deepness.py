"""Files for Deepness: what its classes read from them, in the ONNX Runtime that it needs."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geograft.card import read_card
from geograft.commands.export import export
from geograft.config import ExportConfig
from geograft.errors import SettingError
from geograft.legend import Legend
from tests.exports.test_program import images, reference
from tests.support.exports import BINARY, KINDS, OVERLAPPING, TF_MODEL, make_run, tiny

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

OLD_PYTHON = os.environ.get("GEOGRAFT_ORT_117_PYTHON", "")
"""A Python with ONNX Runtime 1.17 and NumPy 1."""
PLUGIN = os.environ.get("GEOGRAFT_DEEPNESS", "")
"""The folder of the plugin's source that has the package `deepness`."""
NEEDS_OLD = pytest.mark.skipif(not OLD_PYTHON, reason="GEOGRAFT_ORT_117_PYTHON names no Python with ONNX Runtime 1.17")
NEEDS_PLUGIN = pytest.mark.skipif(
    not (OLD_PYTHON and PLUGIN), reason="GEOGRAFT_DEEPNESS names no folder with the plugin's source"
)


def metadata(path: Path) -> dict[str, object]:
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.inference.torch_networks.build", tiny)


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("kind", ["binary", "several classes", "overlapping"])
def test_metadata_and_heads(kind: str, tmp_path: Path) -> None:
    card = replace(KINDS[kind], window_px=64, overlap_px=16)
    out = tmp_path / "a.onnx"
    export(make_run(tmp_path / "run", card, tiny), out, "deepness")
    told = metadata(out)
    shown = {name: told[name] for name in ("model_type", "tile_size", "tiles_overlap", "seg_small_segment")}
    assert shown == {"model_type": "Segmentor", "tile_size": 64, "tiles_overlap": 25, "seg_small_segment": 0}
    assert told["resolution"] == pytest.approx(10.0)
    assert (
        told["class_names"]
        == {
            "binary": {"0": "rest", "1": "crown"},
            "several classes": {"0": "water", "1": "grass", "2": "trees"},
            "overlapping": [{"0": "red"}, {"0": "green"}],
        }[kind]
    )
    assert told["seg_thresh"] == (0.0 if kind == "several classes" else 0.4)
    own = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (image,) = own.get_inputs()
    assert isinstance(image.shape[0], str) and image.shape[1:] == [3, 64, 64]
    shapes = [each.shape[1:] for each in own.get_outputs()]
    assert shapes == {"binary": [[1, 64, 64]], "several classes": [[3, 64, 64]], "overlapping": [[1, 64, 64]] * 2}[kind]


@pytest.mark.usefixtures("_tiny")
def test_what_it_cannot_carry_is_refused_or_said(tmp_path: Path) -> None:
    differing = make_run(tmp_path / "differing", BINARY, tiny, legend=OVERLAPPING, thresholds=(0.31, 0.62))
    with pytest.raises(SettingError, match=r"red 0\.310, green 0\.620"):
        export(differing, tmp_path / "a.onnx", "deepness")
    assert not (tmp_path / "a.onnx").exists()
    export(differing, tmp_path / "a.onnx", "deepness", ExportConfig(threshold=0.5))
    assert metadata(tmp_path / "a.onnx")["seg_thresh"] == 0.5
    several = make_run(tmp_path / "several", BINARY, tiny, legend=Legend(("a", "b", "c")))
    with pytest.raises(SettingError, match=r"--threshold 0\.5"):
        export(several, tmp_path / "b.onnx", "deepness", ExportConfig(threshold=0.5))
    placeless = make_run(tmp_path / "placeless", BINARY, tiny, resolution_m=None, threshold=0.397)
    notes = export(placeless, tmp_path / "b.onnx", "deepness").notes
    assert "resolution" not in metadata(tmp_path / "b.onnx")
    assert any("pixel size" in note for note in notes) and any("0.40 for 0.3970" in note for note in notes)


@pytest.mark.usefixtures("_tiny")
def test_a_window_that_is_no_multiple_of_the_stride_is_padded_inside(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", BINARY, tiny)
    export(run, tmp_path / "a.onnx", "deepness", ExportConfig(window_px=33))
    own = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    assert own.get_inputs()[0].shape[2:] == [33, 33]


IN_OLD_RUNTIME = """
import sys
import numpy, onnxruntime
assert onnxruntime.__version__.startswith("1.17."), onnxruntime.__version__
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
pixels = numpy.load(sys.argv[2])
found = session.run(None, {session.get_inputs()[0].name: numpy.float32(pixels * 1.0 / 255.0)})
numpy.save(sys.argv[3], numpy.concatenate(found, axis=1))
"""
WITH_AND_WITHOUT_MASK = """
import sys
import numpy, onnxruntime
assert onnxruntime.__version__.startswith("1.17."), onnxruntime.__version__
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
pixels = numpy.load(sys.argv[2]).astype(numpy.float32)
valid = numpy.ones(pixels[:, 0].shape, bool)
valid[:, :7, :5] = False
inputs = ({"image": pixels}, {"image": pixels, "valid": valid})
numpy.save(sys.argv[3], numpy.stack([session.run(None, each)[0] for each in inputs]))
"""
IN_PLUGIN = """
import json, sys
import numpy
sys.path.insert(0, sys.argv[4])
from deepness.processing.models.segmentor import Segmentor
model = Segmentor(sys.argv[1])
pixels = numpy.load(sys.argv[2])
found = model.process(pixels.transpose(0, 2, 3, 1))
numpy.save(sys.argv[3], numpy.concatenate(found, axis=1))
print(json.dumps({
    "type": Segmentor.get_model_type_from_metadata(sys.argv[1]),
    "batch": model.get_model_batch_size(),
    "size": list(model.get_input_size_in_pixels()),
    "names": model.get_outputs_channel_names(),
    "channels": model.get_number_of_output_channels(),
    "resolution": model.get_metadata_resolution(),
    "tile_size": model.get_metadata_tile_size(),
    "overlap": model.get_metadata_tiles_overlap(),
    "threshold": model.get_metadata_segmentation_threshold(),
    "small": model.get_metadata_segmentation_small_segment(),
}))
"""


def run_elsewhere(code: str, folder: Path, *arguments: str) -> str:
    command = [OLD_PYTHON, "-c", code, str(folder / "a.onnx"), str(folder / "in.npy"), str(folder / "out.npy")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def exported(tmp_path: Path, kind: str, *, real: bool, target: str = "deepness") -> tuple[Path, np.ndarray]:
    """Export a run and save images; return the run and the expected probabilities."""
    changes = {"model": TF_MODEL} if real else {}
    run = make_run(tmp_path / "run", replace(KINDS[kind], window_px=64), *(() if real else (tiny,)), **changes)
    export(run, tmp_path / "a.onnx", target)
    card = read_card(run)
    pixels, valid = images(card, 3, 64)
    np.save(tmp_path / "in.npy", pixels.astype(card.dtype))
    return run, reference(run, pixels, np.ones_like(valid))


@NEEDS_OLD
def test_onnx_runtime_1_17_gives_torchs_probabilities(tmp_path: Path) -> None:
    _, expected = exported(tmp_path, "binary", real=True)
    run_elsewhere(IN_OLD_RUNTIME, tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4)


@NEEDS_OLD
@pytest.mark.usefixtures("_tiny")
def test_onnx_runtime_1_17_takes_the_mask_or_leaves_it_out(tmp_path: Path) -> None:
    run, expected = exported(tmp_path, "several classes", real=False, target="onnx")
    run_elsewhere(WITH_AND_WITHOUT_MASK, tmp_path)
    without, masked = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(without, expected, atol=1e-4)
    np.testing.assert_allclose(masked, reference(run, *images(read_card(run), 3, 64)), atol=1e-4)


@NEEDS_PLUGIN
@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize(
    "kind", ["binary", "several classes", "overlapping", "ten bands, not georeferenced", "four bands and an index"]
)
def test_the_plugins_own_class_reads_it_and_gives_torchs_probabilities(kind: str, tmp_path: Path) -> None:
    run, expected = exported(tmp_path, kind, real=False)
    card = read_card(run)
    told = json.loads(run_elsewhere(IN_PLUGIN, tmp_path, PLUGIN))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4)
    names = {"overlapping": [["red"], ["green"]], "several classes": [["water", "grass", "trees"]]}
    assert told["names"] == names.get(kind, [["rest", "crown"]])
    assert told["channels"] == {"overlapping": [2, 2], "several classes": [3]}.get(kind, [2])
    assert (told["type"], told["batch"], told["size"]) == ("Segmentor", None, [64, 64])
    assert told["resolution"] == (None if card.resolution_m is None else pytest.approx(100 * card.resolution_m))
    assert (told["tile_size"], told["overlap"], told["small"]) == (64, 50, 0)
    assert told["threshold"] == (0.0 if kind == "several classes" else 0.4)
