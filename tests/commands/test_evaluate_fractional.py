"""Fractional labels are scored as the class with the largest fraction, like hard labels of that class."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy import ndarray

from geograft.commands.calibrate import calibrate
from geograft.commands.evaluate import evaluate
from geograft.commands.report import report
from geograft.commands.review import review
from geograft.commands.train import train
from geograft.dataset.tileset import META, TileSet
from geograft.files import write_json
from tests.commands.test_train import SMALL

pytestmark = pytest.mark.usefixtures("only_torch")


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "unet", SMALL).run


@pytest.fixture(scope="module")
def soft(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tile set of `tiles` with fractional labels: from 0.5 where the label was 1, below where it was 0."""
    folder = tmp_path_factory.mktemp("soft") / "tiles"
    shutil.copytree(tiles, folder)
    rng = np.random.default_rng(0)
    for path in (folder / "masks").glob("*.tif"):
        with rasterio.open(path, "r+") as raster:
            mask: ndarray = raster.read()
            fractions = np.where(mask == 1, rng.integers(125, 251, mask.shape), rng.integers(0, 125, mask.shape))
            raster.write(np.where(mask == 255, 255, fractions).astype(np.uint8))
    meta = json.loads((folder / META).read_text())
    write_json(folder / META, meta | {"fractional": True})
    return folder


def test_fractional_masks_are_read_as_fractions(soft: Path, tiles: Path) -> None:
    label, whole = (TileSet.open(folder).samples("test")[0][1] for folder in (soft, tiles))
    assert (label.dtype, label.shape) == (np.float32, (1, *whole.shape))
    np.testing.assert_array_equal(label[0] >= 0.5, whole == 1)


def test_scores_equal_those_of_hard_labels(run: Path, soft: Path, tmp_path: Path) -> None:
    hard, found = evaluate(run, "test"), evaluate(run, "test", tiles=soft, out=tmp_path / "scores.json")
    np.testing.assert_array_equal(found.confusion, hard.confusion)
    assert found.metrics == hard.metrics
    np.testing.assert_array_equal(found.reliability, hard.reliability)


def test_calibration_equals_that_of_hard_labels(run: Path, soft: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    found, hard = calibrate(other, soft), calibrate(run)
    assert (found.before, found.after, found.pixels) == (hard.before, hard.after, hard.pixels)


def test_review_and_report_accept_fractional_labels(run: Path, soft: Path, tiles: Path, tmp_path: Path) -> None:
    found, hard = (review(run, tmp_path / folder.parent.name, folder).findings for folder in (soft, tiles))
    assert found == hard
    own = train(soft, tmp_path / "own", SMALL.with_settings(train={"epochs": 1})).run
    report(own, tmp_path / "page.html")
    assert "has no pictures of the maps" not in (tmp_path / "page.html").read_text(encoding="utf-8")
