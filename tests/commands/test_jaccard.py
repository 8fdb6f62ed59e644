"""`geograft jaccard`: submissions scored by the rule of the competition."""

import json
from pathlib import Path

import numpy as np
import pytest
from shapely import box

from geograft.commands.jaccard import jaccard
from geograft.errors import InputError, OutputError


def write_table(path: Path, rows: dict[tuple[str, int], object]) -> Path:
    lines = [f'{scene},{number},"{shape}"' for (scene, number), shape in rows.items()]
    path.write_text("\n".join(["ImageId,ClassType,MultipolygonWKT", *lines]) + "\n")
    return path


def shape(left: float, right: float) -> str:
    return str(box(left, -1, right, 0).wkt).replace("POLYGON ", "MULTIPOLYGON (") + ")"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    rows = {("a", 5): shape(0, 4), ("a", 1): shape(8, 9), ("b", 5): shape(0, 2), ("c", 5): shape(0, 1)}
    return write_table(tmp_path / "train_wkt_v4.csv", rows)


def test_areas_are_summed_over_scenes_per_class(tmp_path: Path, labels: Path) -> None:
    first = write_table(tmp_path / "a.csv", {("a", 5): shape(2, 5), ("a", 1): "MULTIPOLYGON EMPTY"})
    second = write_table(tmp_path / "b.csv", {("b", 5): shape(0, 2)})
    result = jaccard([first, second], labels, tmp_path / "scores.json")
    assert [(c.number, c.name) for c in result.classes] == [(1, "buildings"), (5, "trees")]
    # trees: 2 of 5 in a, 2 of 2 in b; buildings: all missed.
    assert [c.index for c in result.classes] == pytest.approx([0, 4 / 7])
    assert result.score == pytest.approx(2 / 7)
    assert result.classes[1].low <= 4 / 7 <= result.classes[1].high
    assert "too narrow" in result.warning
    assert json.loads((tmp_path / "scores.json").read_text())["scenes"] == ["a", "b"]
    assert any("mean 0.2857" in line for line in result.lines())


def test_one_scene_has_no_interval(tmp_path: Path, labels: Path) -> None:
    result = jaccard([write_table(tmp_path / "c.csv", {("c", 5): shape(0, 1)})], labels)
    assert result.score == 1
    assert np.isnan(result.low)
    assert any("no interval" in line for line in result.lines())


def test_invalid_submissions_raise(tmp_path: Path, labels: Path) -> None:
    good = write_table(tmp_path / "a.csv", {("a", 5): shape(0, 4)})
    with pytest.raises(InputError, match=r"train_wkt_v4\.csv .*\bz\b"):
        jaccard([write_table(tmp_path / "z.csv", {("z", 5): shape(0, 4)})], labels)
    with pytest.raises(InputError, match=r"again\.csv .*\ba\b"):
        jaccard([good, write_table(tmp_path / "again.csv", {("a", 5): shape(0, 4)})], labels)
    with pytest.raises(InputError, match=r"other\.csv"):
        (tmp_path / "other.csv").write_text("x,y\n1,2\n")
        jaccard([tmp_path / "other.csv"], labels)
    with pytest.raises(InputError, match="nowhere"):
        jaccard([good], tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"a\.csv"):
        jaccard([good], labels, good)
