"""`geograft export`: each kind of run for each program, refusals, and 8-bit integers that are kept or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geograft.card import read_card
from geograft.cli import app
from geograft.commands.export import TARGETS, export
from geograft.commands.prepare import prepare
from geograft.commands.train import train
from geograft.config import ExportConfig, PrepareConfig
from geograft.dataset.sources import VectorSource
from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.exports import quantize
from geograft.inference.predictor import EnsemblePredictor
from geograft.mapping.places import Place, UsedTile
from tests.commands.test_train import SMALL
from tests.exports.test_program import images, reference
from tests.support.exports import BINARY, KINDS, make_run, tiny

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

SUFFIXES = {"onnx": ".onnx", "deepness": ".onnx", "openvino": ".xml", "torch": ".pt2"}


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.inference.torch_networks.build", tiny)


def opened(path: Path, target: str) -> Any:
    from geograft.exports import deepness, onnx, program

    known = {
        "onnx": onnx.open_onnx,
        "deepness": deepness.open_plugin_model,
        "openvino": onnx.open_openvino,
        "torch": program.open_program,
    }
    return known[target](path)


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_run_goes_through_each_export(kind: str, target: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", KINDS[kind], tiny)
    out = tmp_path / f"model{SUFFIXES[target]}"
    made = export(run, out, target)
    assert made.path == out and out.is_file()
    assert {path.name for path in tmp_path.iterdir()} - {"run", out.name} <= {"model.bin"}
    predict = opened(out, target)
    for count in (1, 3):
        pixels, valid = images(read_card(run), count, 32)
        np.testing.assert_allclose(predict(pixels, valid), reference(run, pixels, valid), atol=1e-4)
    if target != "deepness":
        pixels, valid = images(read_card(run), 2, 46)
        np.testing.assert_allclose(predict(pixels, valid), reference(run, pixels, valid), atol=1e-4)


@pytest.fixture(scope="module")
def soft_run(fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on fractional labels."""
    folder = tmp_path_factory.mktemp("soft")
    config = PrepareConfig(tile_px=32, overlap=0.0, split="block", block_px=64, buffer_px=0, val=0.2, test=0.2)
    source = VectorSource(images=(fields / "scene.tif",), labels=fields / "fields.gpkg", fractional=True)
    prepare(source, folder / "tiles", config)
    return train(folder / "tiles", folder / "run", SMALL.with_settings(train={"epochs": 1})).run


@pytest.mark.parametrize("target", TARGETS)
def test_a_run_with_fractional_labels_goes_through_each_export(target: str, soft_run: Path, tmp_path: Path) -> None:
    out = tmp_path / f"model{SUFFIXES.get(target, '.graft' if target == 'bundle' else '.json')}"
    config = ExportConfig(window_px=32 if target == "deepness" else 0)
    assert export(soft_run, out, target, config).path == out
    if target == "bundle":
        assert read_card(out) == read_card(soft_run)
    if target in SUFFIXES:
        pixels, valid = images(read_card(soft_run), 2, 32)
        np.testing.assert_allclose(opened(out, target)(pixels, valid), reference(soft_run, pixels, valid), atol=1e-4)


def test_8_bit_integers_are_tried_on_fractional_labels(
    soft_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "MIN_SPEEDUP", 0.0)
    monkeypatch.setattr(quantize, "MAX_IOU_LOSS", 1.0)
    made = export(soft_run, tmp_path / "int8.onnx", "onnx", ExportConfig(int8=True))
    assert any("times as fast" in line for line in made.lines())


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("target", SUFFIXES)
def test_a_place_is_exported_with_its_temperature(target: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", BINARY, tiny)
    card = read_card(run)
    used = (UsedTile("0" * 64, 0, 0, 32),)
    place = Place("north", card.weights_digest, "tiles", 3 * card.temperature, (0.2,), (False,), used)
    place.write(run)
    out = tmp_path / f"model{SUFFIXES[target]}"
    export(run, out, target, ExportConfig(place="north"))
    pixels, valid = images(card, 2, 32)
    found = opened(out, target)(pixels, valid)
    own = reference(run, pixels, valid)
    assert np.abs(found - own).max() > 0.01
    there = EnsemblePredictor.load([run], device="cpu", backend="torch", cards=(place.card(card),))
    np.testing.assert_allclose(found, there(pixels, valid), atol=1e-4)
    with pytest.raises(SettingError, match="--place"):
        export(run, tmp_path / "run.graft", "bundle", ExportConfig(place="north"))
    with pytest.raises(InputError, match=r"south.*north"):
        export(run, tmp_path / f"south{SUFFIXES[target]}", target, ExportConfig(place="south"))


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize(
    ("target", "name", "settings", "error"),
    [
        ("tflite", "a.onnx", {}, SettingError),
        ("onnx", "a.pt2", {}, SettingError),
        ("torch", "a.pt2", {"int8": True}, SettingError),
        ("onnx", "a.onnx", {"window_px": 64}, SettingError),
        ("openvino", "a.xml", {"threshold": 0.5}, SettingError),
        ("onnx", "a.onnx", {"int8": True}, InputError),  # it does not name its tile set
        ("onnx", "there.onnx", {}, OutputError),
        ("openvino", "there.xml", {}, OutputError),  # there.bin is there
    ],
)
def test_bad_requests_write_nothing(
    target: str, name: str, settings: dict[str, object], error: type[GeograftError], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", BINARY, tiny)
    for there in ("there.onnx", "there.bin"):
        (tmp_path / there).write_bytes(b"precious")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(error):
        export(run, tmp_path / name, target, ExportConfig(**settings))  # type: ignore[arg-type]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(("target", "module"), [("onnx", "onnxscript"), ("openvino", "openvino"), ("deepness", "onnx")])
def test_a_missing_library_is_named(target: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    run = make_run(tmp_path / "run", BINARY, tiny)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingError, match=r"pip install 'geograft\["):
        export(run, tmp_path / f"a{SUFFIXES[target]}", target)


@pytest.mark.usefixtures("_tiny")
def test_a_network_that_cannot_be_exported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_given: object, **_options: object) -> None:
        raise RuntimeError("no such operator: aten::swirl.\nand much more")

    run = make_run(tmp_path / "run", BINARY, tiny)
    monkeypatch.setattr("geograft.commands.export.export_program", fails)
    with pytest.raises(InputError, match=r"\(?no such operator: aten::swirl") as raised:
        export(run, tmp_path / "a.onnx")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.fixture(scope="module")
def trained(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that names its tile set."""
    return train(tiles, tmp_path_factory.mktemp("trained") / "run", SMALL).run


def try_different_files(before: Any, after: Any, card: Any, tiles: Any) -> quantize.QuantizationTrial:
    assert not np.array_equal(before(*tiles[0][0]), after(*tiles[0][0]))
    return quantize.try_quantized(before, after, card, tiles)


@pytest.mark.parametrize(("speedup", "loss", "kept"), [(0.0, 1.0, True), (1e9, 1.0, False), (0.0, -1.0, False)])
def test_8_bit_integers_are_kept_only_if_they_are_fast_and_accurate(
    speedup: float, loss: float, kept: bool, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "MIN_SPEEDUP", speedup)
    monkeypatch.setattr(quantize, "MAX_IOU_LOSS", loss)
    out = tmp_path / "int8.onnx"
    monkeypatch.setattr("geograft.commands.export.try_quantized", try_different_files)
    if not kept:
        with pytest.raises(SettingError, match=r"times as fast .* IoU \d\.\d{3} instead of \d\.\d{3}"):
            export(trained, out, "onnx", ExportConfig(int8=True))
        assert not list(tmp_path.iterdir())
        return
    made = export(trained, out, "onnx", ExportConfig(int8=True))
    assert any("times as fast" in line for line in made.lines())
    import onnx

    model = onnx.load(out)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert "geograft_card" in {entry.key for entry in model.metadata_props}
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]
    # The mask may still be left out.
    predict = opened(out, "onnx")
    pixels, valid = images(read_card(trained), 2, 32)
    found = predict(pixels, np.ones_like(valid))
    assert np.abs(found - reference(trained, pixels, np.ones_like(valid))).mean() < 0.05
    own = onnxruntime_session(out)
    np.testing.assert_array_equal(own.run(None, {"image": pixels})[0], found)


def onnxruntime_session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.usefixtures("_tiny")
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", BINARY, tiny)
    app(["export", str(run), "--for", "torch", "--out", str(tmp_path / "a.pt2")], result_action="return_value")
    printed = capsys.readouterr().out
    assert "a.pt2" in printed and "red, green, blue" in printed and "crown" in printed
    assert set(SUFFIXES) <= set(TARGETS)
