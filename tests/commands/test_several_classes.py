"""Overlapping classes and fractional labels on the command line, from images and masks to a trained network."""

from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float32
from numpy import ndarray

from geograft.card import read_card
from geograft.cli import app
from geograft.dataset.tileset import TileSet
from geograft.training.history import read_history
from tests.support.rasters import write_raster

SIDE = 64
LIGHT = (
    *("--architecture", "light", "--encoder", "test_efficientnet", "--weights", "none", "--device", "cpu"),
    *("--epochs", "8", "--batch-size", "2", "--encoder-lr", "0.003", "--decoder-lr", "0.003"),
    *("--crops", "--copy-paste", "0.3", "--scale-jitter", "0.2", "--sampling", "classes"),
    *("--class-weights", "balanced"),
)


def call(*words: object) -> None:
    app([str(word) for word in words], result_action="return_value")


def class_blocks(rng: np.random.Generator, classes: int) -> Float32[ndarray, "k h w"]:
    """Return class fractions in blocks of 8 pixels, independent for each class, in steps of 1/8."""
    steps = rng.integers(0, 9, (classes, SIDE // 8, SIDE // 8)) / 8
    return steps.repeat(8, axis=1).repeat(8, axis=2).astype(np.float32)


def folders(folder: Path, classes: int, pure: bool) -> tuple[Path, Path]:
    """Write six images, whose bands are as bright as the class fractions, and masks with an unlabelled corner."""
    rng = np.random.default_rng(0)
    for number in range(6):
        fractions = class_blocks(rng, classes)
        fractions = np.rint(fractions) if pure else fractions
        image = rng.normal(60, 8, (3, SIDE, SIDE))
        image[:classes] += 120 * fractions
        fractions[:, :8, :8] = np.nan
        # Without CRS: images at one place would be one place.
        write_raster(folder / "images" / f"{number}.tif", image.clip(1, 255).astype(np.uint8), crs=None)
        write_raster(folder / "masks" / f"{number}.tif", fractions, crs=None)
    return folder / "images", folder / "masks"


CASES = {
    "overlapping": (2, ("--classes", "1=red,2=green", "--overlapping")),
    "overlapping fractional": (2, ("--classes", "1=red,2=green", "--overlapping", "--fractional")),
    "fractional": (1, ("--classes", "1=red,0=other", "--fractional")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_network_learns_overlapping_and_fractional_labels(case: str, tmp_path: Path) -> None:
    bands, flags = CASES[case]
    images, masks = folders(tmp_path, bands, pure="--fractional" not in flags)
    parts = ("--tile-px", SIDE, "--split", "scene", "--val", "0.2", "--test", "0")
    call("prepare", "masks", images, masks, *flags, *parts, "--out", tmp_path / "tiles")
    call("train", tmp_path / "tiles", "--out", tmp_path / "run", *LIGHT)
    history, card = read_history(tmp_path / "run"), read_card(tmp_path / "run")
    legend = TileSet.open(tmp_path / "tiles").meta.legend
    assert card.legend == legend
    assert legend.overlapping is ("--overlapping" in flags)
    losses = [epoch.train_loss for epoch in history.epochs]
    assert losses[-1] < 0.8 * losses[0]
    assert history.best.val_loss < history.epochs[0].val_loss
