"""Several tile sets as one: the same tiles, labels and pixels, sampled by their weights, trained and scored on."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geograft.cli import app
from geograft.commands.audit import audit_tile_set
from geograft.commands.calibrate import calibrate
from geograft.commands.evaluate import evaluate
from geograft.commands.train import train
from geograft.config import Recipe, TrainConfig
from geograft.dataset.joined import TileSetPaths, join_tile_sets, open_run_tiles
from geograft.dataset.tileset import META, SPLITS, TileSet
from geograft.errors import InputError, SettingError
from geograft.training.checkpoint import LAST
from geograft.training.history import read_history
from geograft.training.loader import TileLoader
from tests.support.training import training_data

pytestmark = pytest.mark.usefixtures("only_torch")

SMALL = Recipe().with_settings(
    model={"architecture": "unet"}, train={"epochs": 1, "batch_size": 4, "decoder_lr": 3e-3, "device": "cpu"}
)


@pytest.fixture(scope="module")
def pair(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tile sets of equal content, in folders of the same name."""
    folder = tmp_path_factory.mktemp("pair")
    for place in ("north", "south"):
        shutil.copytree(tiles, folder / place / "tiles")
    return folder / "north" / "tiles", folder / "south" / "tiles"


@pytest.fixture(scope="module")
def run(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(pair, tmp_path_factory.mktemp("runs") / "both", SMALL).run


def change_meta(folder: Path, **changes: Any) -> None:
    meta = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps(meta | changes))


def test_a_joined_set_has_the_samples_of_all(pair: tuple[Path, Path]) -> None:
    members = [TileSet.open(folder) for folder in pair]
    both = join_tile_sets(members)
    assert len({scene.name for scene in both.meta.scenes}) == sum(len(each.meta.scenes) for each in members)
    for split in SPLITS:
        joined, parts = both.samples(split), [each.samples(split) for each in members]
        assert len(joined) == sum(map(len, parts)) > 0
        for index, (image, label) in enumerate(
            sample for part in parts for sample in (part[i] for i in range(len(part)))
        ):
            np.testing.assert_array_equal(joined[index][0], image)
            np.testing.assert_array_equal(joined[index][1], label)


def test_statistics_are_those_of_all_training_pixels(tiles: Path) -> None:
    """The mean and variance of a mixture, from pixels."""
    whole = TileSet.open(tiles)
    labelled = sum(tile.valid for tile in whole.split("train"))
    meta = replace(whole.meta, mean=tuple(m + 30 for m in whole.meta.mean), std=tuple(2 * s for s in whole.meta.std))
    other = replace(whole, meta=meta, tiles=whole.split("train")[: len(whole.split("train")) // 3])
    ours, theirs = labelled, sum(tile.valid for tile in other.split("train"))
    found = join_tile_sets([whole, other]).meta
    rng = np.random.default_rng(0)
    for band, (mean, std) in enumerate(zip(found.mean, found.std, strict=True)):
        draws = [rng.standard_normal(round(count * 20_000)) for count in (ours, theirs)]
        pixels = np.concatenate(
            [z / z.std() * each.std[band] + each.mean[band] for z, each in zip(draws, (whole.meta, meta), strict=True)]
        )
        assert pixels.mean() == pytest.approx(mean, rel=2e-3)
        assert pixels.std() == pytest.approx(std, rel=2e-3)


def test_a_set_alone_is_itself_and_fingerprints_differ(pair: tuple[Path, Path]) -> None:
    north, south = (TileSet.open(folder) for folder in pair)
    assert join_tile_sets([north]) is north
    south = replace(south, meta=replace(south.meta, fingerprint="other"))
    prints = [
        join_tile_sets(*given).meta.fingerprint
        for given in (([north, south],), ([south, north],), ([north, south], (1, 2)))
    ]
    assert len({*prints, north.meta.fingerprint}) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "uint16"}, "uint16"),
        ({"band_names": ["red", "green", "swir"]}, "swir"),
        ({"legend": {"names": ["background", "roads"], "colours": [None, None]}}, "roads"),
        ({"scale": 2048.0}, "2048"),
    ],
)
def test_sets_that_differ_are_refused(
    changes: dict[str, Any], words: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(pair[1], tmp_path / "other"))
    if "legend" in changes:
        known = json.loads((other / META).read_text())["legend"]
        changes = {"legend": {**known, "names": ["background", "roads"]}}
    change_meta(other, **changes)
    with pytest.raises(InputError, match=words):
        TileSetPaths.of([pair[0], other]).open()


def test_paths_are_checked_and_kept(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="twice"):
        TileSetPaths.of([pair[0], pair[0]])
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(SettingError, match="above 0"):
            TileSetPaths.of({pair[0]: 1.0, pair[1]: weight})
    for given in (pair[0], list(pair), {pair[0]: 1.0, pair[1]: 3.0}):
        paths = TileSetPaths.of(given)
        (tmp_path / "tiles.json").write_text(paths.text())
        assert TileSetPaths.of_run(tmp_path) == paths
    for damage in (
        "",
        "[]",
        "{}",
        '{"tiles": []}',
        '{"tiles": ["a", "b"], "weights": [1]}',
        '{"tiles": ["a", "b"], "weights": [1, -1]}',
    ):
        (tmp_path / "tiles.json").write_text(damage)
        with pytest.raises(InputError, match=r"tiles\.json"):
            TileSetPaths.of_run(tmp_path)


def test_tiles_are_drawn_by_the_weight_of_their_set() -> None:
    data = training_data()
    count = len(data.train)
    weights = np.where(np.arange(count) < count // 2, 1.0, 3.0)
    config = TrainConfig(device="cpu", batch_size=4, workers=0)
    loader = TileLoader(replace(data, tile_weights=weights), config, torch.device("cpu"))
    drawn = Counter(index for epoch in range(40) for batch in loader.batch_indices(epoch) for index in batch)
    assert drawn.total() == 40 * count
    light, heavy = (sum(drawn[i] for i in part) / len(part) for part in (range(count // 2), range(count // 2, count)))
    assert heavy / light == pytest.approx(3, rel=0.1)


def test_a_run_on_two_sets_is_scored_and_calibrated_on_both(run: Path, pair: tuple[Path, Path]) -> None:
    both = open_run_tiles(run)
    assert both.folders == tuple(folder.resolve() for folder in pair)
    scores = evaluate(run, "test")
    assert scores.tiles_scored == sum(len(TileSet.open(folder).split("test")) for folder in pair)
    assert "validation tiles" in calibrate(run).card.calibrated
    assert open_run_tiles(run, pair[0]).folder == pair[0]


def test_the_same_pixels_in_two_sets_are_seen_by_the_audit(pair: tuple[Path, Path]) -> None:
    """Tiles of one set lie where held-out tiles of the other do."""
    north = TileSet.open(pair[0])
    clean = audit_tile_set(north)
    swapped = {"train": "test", "test": "train", "val": "val"}
    south = replace(north, tiles=tuple(replace(tile, split=swapped[tile.split]) for tile in north.tiles))
    assert audit_tile_set(join_tile_sets([north, south])).verdict != clean.verdict


def test_training_on_two_sets_resumes_to_the_same_weights(
    run: Path, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = SMALL.with_settings(train={"epochs": 2})
    whole = train(pair, tmp_path / "whole", two).run
    part = Path(shutil.copytree(whole, tmp_path / "part"))
    words = ["train", *map(str, pair), "--out", str(part), "--resume", "--epochs", "2"]
    app(words, result_action="return_value")
    assert (part / LAST).read_bytes() == (whole / LAST).read_bytes()
    with pytest.raises(SettingError):
        train(pair[0], part, two, resume=True)


def test_without_validation_tiles_the_last_epoch_is_kept(tiles: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    import geopandas

    index = geopandas.read_file(folder / "tiles.gpkg")
    index.loc[index["split"] == "val", "split"] = "test"
    index.to_file(folder / "tiles.gpkg", layer="tiles")
    result = train(folder, tmp_path / "run", SMALL.with_settings(train={"epochs": 2}))
    assert result.card.epoch == 2
    assert result.card.window == (32, 16)
    assert any("last epoch" in note for note in result.notes)
    assert np.isnan([epoch.val_loss for epoch in read_history(result.run).epochs]).all()
