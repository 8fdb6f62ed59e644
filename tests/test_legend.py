"""Mutually exclusive and overlapping classes."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from geograft.config import TrainConfig
from geograft.dataset.tileset import META, TileSet
from geograft.errors import InputError
from geograft.files import json_digest, write_json
from geograft.legend import BACKGROUND_COLOUR, Legend
from geograft.losses.segmentation import build_loss_config

PAIR = Legend(("rest", "tree"))
COVERS = Legend(("background", "tree", "road"))
OVERLAPPING = Legend(("tree", "road"), overlapping=True)


@pytest.mark.parametrize(
    ("legend", "outputs", "binary"), [(PAIR, 1, True), (COVERS, 3, False), (OVERLAPPING, 2, False)]
)
def test_two_classes_share_an_output_unless_they_overlap(legend: Legend, outputs: int, binary: bool) -> None:
    assert (legend.outputs, legend.binary) == (outputs, binary)
    assert build_loss_config(TrainConfig(), legend).overlapping is legend.overlapping


def test_the_first_of_two_classes_is_grey_unless_they_overlap() -> None:
    assert [colour == BACKGROUND_COLOUR for colour in PAIR.colours] == [True, False]
    assert BACKGROUND_COLOUR not in OVERLAPPING.colours


def test_a_legend_without_overlapping_reads_and_keeps_its_digest() -> None:
    older = {"names": ["rest", "tree"], "values": [0, 1]}
    assert TypeAdapter(Legend).validate_json(json.dumps(older)) == PAIR
    assert json_digest(PAIR.content) == json_digest(older)
    assert json_digest(OVERLAPPING.content) == json_digest(
        {"names": ["tree", "road"], "values": [0, 1], "overlapping": True}
    )


def test_overlapping_classes_round_trip_through_json() -> None:
    assert TypeAdapter(Legend).validate_json(json.dumps(asdict(OVERLAPPING))) == OVERLAPPING


def test_a_tile_set_of_overlapping_classes_without_fractional_labels_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / META, {"legend": asdict(OVERLAPPING), "band_names": ["red"], "dtype": "uint8", "scale": 255.0,
        "mean": [0.0], "std": [1.0], "scenes": [], "settings": {}, "source": {}, "fingerprint": ""})  # fmt: skip
    with pytest.raises(InputError, match="overlapping"):
        TileSet.open(tmp_path)
