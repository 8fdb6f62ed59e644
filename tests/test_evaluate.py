"""`tilth evaluate`: every pixel counted once, in one confusion matrix."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import confusion_matrix

from tilth.errors import InputError, OutputError
from tilth.geo.tileset import TileSet
from tilth.legend import IGNORE
from tilth.verbs.evaluate import counted, evaluate
from tilth.verbs.train import train

from test_train import SMALL  # isort: skip


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "unet", SMALL).run


def test_the_scores_are_those_of_the_confusion_matrix(run: Path, tiles: Path) -> None:
    result = evaluate(run, "test")
    content = json.loads((run / "scores-test.json").read_text())
    (tn, fp), (fn, tp) = content["confusion"]
    assert content["overall"]["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert content["per_class"][1]["precision"] == pytest.approx(tp / (tp + fp))
    samples = TileSet.open(tiles).samples("test", once=True)
    labels = [samples[i][1] for i in range(len(samples))]
    assert tn + fp + fn + tp == sum((label != IGNORE).sum() for label in labels)
    assert fn + tp == sum((label == 1).sum() for label in labels)
    assert any("fields" in line for line in result.lines())


def test_validation_scores_are_those_of_training(run: Path) -> None:
    from tilth.learn.history import read_history

    found = evaluate(run, "val").content("val")["overall"]["iou"]
    assert found == pytest.approx(read_history(run).best.val_iou, abs=1e-3)


@given(
    label=arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, IGNORE])),
    predicted=arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2])),
)
def test_counts_are_those_of_scikit_learn(label: np.ndarray, predicted: np.ndarray) -> None:
    known = label != IGNORE
    found = counted(label, predicted, 3)
    assert found.sum() == known.sum()
    if known.any():
        assert (found == confusion_matrix(label[known], predicted[known], labels=[0, 1, 2])).all()


def test_bad_input_is_told(run: Path, tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a finished run"):
        evaluate(tmp_path)
    with pytest.raises(InputError, match="is not a tile set"):
        evaluate(run, tiles=tmp_path)
    (tmp_path / "scores.json").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        evaluate(run, out=tmp_path / "scores.json")
    assert (tmp_path / "scores.json").read_text() == "mine"
