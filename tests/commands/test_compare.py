"""`geograft compare`: variants differ only in their settings; resumable."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from geograft.commands.compare import Comparison, check_variants, compare, slug
from geograft.commands.train import train
from geograft.config import Recipe, Variant, parse_recipe
from geograft.errors import SettingError
from geograft.mapping.held_out import evenly_spaced
from geograft.training.checkpoint import LAST
from geograft.training.history import read_history
from tests.commands.test_train import SMALL

pytestmark = pytest.mark.usefixtures("only_torch")

RECIPE = parse_recipe(
    {
        "title": "Two rates",
        "seeds": [0, 1],
        "model": {"architecture": "unet"},
        "train": {"epochs": 2, "batch_size": 4, "decoder_lr": 3e-3, "device": "cpu"},
        "variants": [{"name": "fast"}, {"name": "Slow, too", "train": {"decoder_lr": 1e-5}}],
    }
)


@pytest.fixture(scope="module")
def comparison(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(tiles, RECIPE, tmp_path_factory.mktemp("comparison") / "rates")


def test_every_variant_trains_with_every_seed(comparison: Comparison) -> None:
    folder = comparison.folder
    assert [(row.variant, row.seed) for row in comparison.rows] == [
        ("fast", 0), ("fast", 1), ("Slow, too", 0), ("Slow, too", 1),
    ]  # fmt: skip
    for row in comparison.rows:
        best = read_history(folder / row.run).best
        assert (row.best_val_loss, row.best_epoch, row.iou) == (best.val_loss, best.epoch, best.val_iou)
        assert row.gap == pytest.approx(best.val_loss - best.train_loss)
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [float(row["best_val_loss"]) for row in rows] == [row.best_val_loss for row in comparison.rows]
    assert len(json.loads((folder / "comparison.json").read_text())["rows"]) == 4
    for picture in ("losses.png", "samples.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_the_higher_learning_rate_learns_more(comparison: Comparison) -> None:
    assert comparison.best().variant == "fast"
    fast, slow = comparison.by_variant().values()
    assert max(row.best_val_loss for row in fast) < min(row.best_val_loss for row in slow)
    assert "±" in "\n".join(comparison.lines())


def test_a_variant_equals_the_run_of_train(comparison: Comparison, tiles: Path, tmp_path: Path) -> None:
    alone = train(tiles, tmp_path / "alone", RECIPE.variant(RECIPE.variants[1], 1)).run
    assert (alone / LAST).read_bytes() == (comparison.folder / "slow-too" / "seed1" / LAST).read_bytes()


def test_running_again_trains_nothing(comparison: Comparison, tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = comparison.folder / "fast" / "seed0" / LAST
    before = weights.stat().st_mtime_ns
    assert compare(tiles, RECIPE, comparison.folder) == comparison
    assert weights.stat().st_mtime_ns == before
    announced = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2] for line in announced] == [
        f"{row.variant}, seed {row.seed}" for row in sorted(comparison.rows, key=lambda row: row.seed)
    ]


def test_recipes_without_distinct_variants_are_refused(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"\[\[variants\]\]"):
        compare(tiles, SMALL, tmp_path / "out")
    with pytest.raises(SettingError, match="a-b, a-b"):
        check_variants(Recipe(variants=(Variant("A b"), Variant("a-b"))))
    for name in ("", "  ", "../..", "n" * 300):
        with pytest.raises(SettingError, match=re.escape(repr(name[:40]))):
            compare(tiles, replace(RECIPE, variants=(Variant("a"), Variant(name))), tmp_path / "out")
    for folds in (-1, 10**9):
        with pytest.raises(SettingError, match=str(folds)):
            compare(tiles, RECIPE, tmp_path / "out", folds=folds)
    assert not list(tmp_path.iterdir())


def test_folder_names_and_even_spacing() -> None:
    assert slug("U-Net, EfficientNet-B0") == "u-net-efficientnet-b0"
    assert evenly_spaced(10, 4) == [0, 3, 6, 9]
    assert evenly_spaced(1, 4) == [0]
