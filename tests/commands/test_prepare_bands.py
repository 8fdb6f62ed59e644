"""`prepare --bands`: a tile set of some bands is that of images which have only these, from statistics to maps."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy import ndarray

from geograft.card import WEIGHTS, read_card
from geograft.cli import main
from geograft.commands.audit import audit
from geograft.commands.evaluate import evaluate
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.commands.report import report
from geograft.commands.review import review
from geograft.commands.suggest import suggest
from geograft.commands.train import train
from geograft.config import PredictConfig, PrepareConfig, ReviewConfig, SuggestConfig
from geograft.dataset.folds import write_derived_set, write_fold_sets
from geograft.dataset.sources import MaskSource, VectorSource
from geograft.dataset.tileset import SPLITS, TileSet
from geograft.errors import InputError, SettingError
from tests.commands.test_bands import BLOCKS, TINY, arrays, crops, written
from tests.commands.test_predict import read

NAMES = ("blue", "green", "red", "nir")
ORDERS = [(4, 3, 2), (4,), (2, 1, 4, 3)]


def scene(folder: Path, *bands: int, name: str = "scene.tif", **options: Any) -> Path:
    """Write a named scene with these of four bands; in one row only the first is not nodata."""
    folder.mkdir(exist_ok=True)
    pixels, windows = crops(4, "uint8")
    pixels[1:, 40] = 0
    path = written(folder, pixels[[band - 1 for band in bands]], windows, name, nodata=0, **options)
    with rasterio.open(path, "r+") as raster:
        raster.descriptions = [NAMES[band - 1] for band in bands]
    return path


def pair(folder: Path, bands: tuple[int, ...], **changes: Any) -> tuple[TileSet, TileSet]:
    """Return a tile set of some bands of a scene, and one of a scene that has only these."""
    settings = replace(BLOCKS, **changes)
    images = (
        scene(folder / "all", 1, 2, 3, 4, photometric="MINISBLACK"),
        scene(folder / "some", *bands, photometric="MINISBLACK"),
    )
    sources = [VectorSource((image,), image.parent / "crops.gpkg") for image in images]
    chosen = prepare(sources[0], folder / "chosen", replace(settings, bands=bands))
    return chosen, prepare(sources[1], folder / "plain", settings)


def content(tiles: TileSet) -> dict[str, Any]:
    """Return all of tileset.json but what names the images."""
    found = asdict(tiles.meta)
    del found["settings"]["bands"], found["fingerprint"], found["source"]["labels"]
    found["masks"] = Path(found["masks"]).name
    for one in found["scenes"]:
        del one["image"], one["digest"]
    return found


@pytest.mark.parametrize("index", [(), ("first=b1/2",)])
@pytest.mark.parametrize("bands", ORDERS)
def test_statistics_tiles_and_pixels_are_those_of_the_chosen_bands(
    tmp_path: Path, bands: tuple[int, ...], index: tuple[str, ...]
) -> None:
    chosen, plain = pair(tmp_path, bands, index=index)
    assert content(chosen) == content(plain)
    assert chosen.meta.settings.bands == bands
    assert chosen.meta.band_names[: len(bands)] == tuple(NAMES[band - 1] for band in bands)
    assert chosen.tiles == plain.tiles
    assert chosen.meta.fingerprint != plain.meta.fingerprint
    for one, other in zip(arrays(chosen), arrays(plain), strict=True):
        np.testing.assert_array_equal(one, other)
    first, second = ("\n".join(audit(tiles.folder).lines()) for tiles in (chosen, plain))
    assert first.replace(str(chosen.folder), "") == second.replace(str(plain.folder), "")
    folds = [write_fold_sets(tiles.folder, 2, tmp_path / f"folds-{tiles.folder.name}") for tiles in (chosen, plain)]
    for one, other in zip(*folds, strict=True):
        assert content(TileSet.open(one)) == content(TileSet.open(other))


def test_a_run_has_the_same_weights_and_scores_and_maps_the_whole_raster(tmp_path: Path) -> None:
    bands = (4, 3, 2)
    chosen, plain = pair(tmp_path, bands)
    runs = [tmp_path / "run-chosen", tmp_path / "run-plain"]
    for tiles, run in zip((chosen, plain), runs, strict=True):
        train(tiles.folder, run, TINY)
    assert (runs[0] / WEIGHTS).read_bytes() == (runs[1] / WEIGHTS).read_bytes()
    assert read_card(runs[0]).band_names == ("nir", "red", "green")
    first, second = (evaluate(run) for run in runs)
    np.testing.assert_array_equal(first.confusion, second.confusion)
    assert first.notes == second.notes == ()
    raster, settings = tmp_path / "all" / "scene.tif", PredictConfig(backend="torch", device="cpu", overlap=0.0)
    with pytest.raises(InputError, match="--bands 4 3 2"):
        predict(runs[0], (raster,), tmp_path / "map.tif", settings)
    predict(runs[0], (raster,), tmp_path / "map.tif", replace(settings, bands=bands))
    predict(runs[1], (tmp_path / "some" / "scene.tif",), tmp_path / "expected.tif", settings)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "expected.tif"))
    report(runs[0], tmp_path / "report.html")
    review(runs[0], tmp_path / "review", config=ReviewConfig())
    known = write_derived_set(chosen, chosen.split("train"), tmp_path / "known")
    scores = []
    for run, tiles in zip(runs, (chosen, plain), strict=True):
        config = SuggestConfig(device="cpu", backend="torch")
        found = suggest(run, (tiles.folder,), tmp_path / f"{run.name}.gpkg", config, known)
        scores.append([(one.window, one.score) for one in found.tiles])
    assert scores[0] == scores[1] != []


def test_a_tile_set_in_another_order_is_noted_with_the_bands_to_prepare(tmp_path: Path) -> None:
    _, plain = pair(tmp_path, (4, 3, 2))
    run = tmp_path / "run"
    train(plain.folder, run, TINY)
    image = tmp_path / "all" / "scene.tif"
    source = VectorSource((image,), image.parent / "crops.gpkg")
    turned = prepare(source, tmp_path / "turned", replace(BLOCKS, bands=(2, 4, 3)))
    (note,) = evaluate(run, tiles=turned.folder).notes
    assert all(part in note for part in ("green, nir, red", "nir, red, green", "--bands 4 3 2"))
    assert evaluate(run).notes == ()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_masks_and_images_that_are_copied(tmp_path: Path, suffix: str) -> None:
    pixels, windows = crops(3, "uint8")
    labels = np.ones(pixels.shape[1:], np.uint8)
    for window in windows:
        labels[window.slices] = 2
    pictures: list[tuple[str, ndarray]] = [("all", pixels), ("some", pixels[[2, 0]]), ("masks", labels[None])]
    for name, bands in pictures:
        (tmp_path / name).mkdir()
        driver = {"png": "PNG", "tif": "GTiff"}[suffix]
        profile = {"count": len(bands), "height": 96, "width": 96, "dtype": "uint8", "driver": driver}
        if name == "some":
            profile["driver"] = "GTiff"
        ending = "tif" if name == "some" else suffix
        with rasterio.open(tmp_path / name / f"a.{ending}", "w", **profile) as raster:
            raster.write(bands)
    classes = {2: "crops", 1: "rest"}
    masks = tmp_path / "masks"
    chosen = prepare(MaskSource(tmp_path / "all", masks, classes), tmp_path / "one", replace(BLOCKS, bands=(3, 1)))
    plain = prepare(MaskSource(tmp_path / "some", masks, classes), tmp_path / "other", BLOCKS)
    assert (chosen.meta.mean, chosen.meta.std) == (plain.meta.mean, plain.meta.std)
    assert any(chosen.split(split) for split in SPLITS)
    for one, other in zip(arrays(chosen), arrays(plain), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("bands", "error", "named"),
    [
        ((5,), InputError, r"scene\.tif has 4 bands .*blue.* band 5"),
        ((1, 9, 2), InputError, "band 9"),
        ((2, 2), SettingError, "--bands 2 2 has band 2 twice"),
        ((9, 1, 9), SettingError, "band 9 twice"),
    ],
)
def test_bands_that_are_missing_or_repeated_are_refused(
    tmp_path: Path, bands: tuple[int, ...], error: type[Exception], named: str
) -> None:
    image = scene(tmp_path / "all", 1, 2, 3, 4, photometric="MINISBLACK")
    source = VectorSource((image,), image.parent / "crops.gpkg")
    with pytest.raises(error, match=named):
        prepare(source, tmp_path / "tiles", PrepareConfig(bands=bands))
    assert {path.name for path in tmp_path.iterdir()} == {"all"}


@pytest.mark.parametrize(("wrong", "named"), [("0", "--bands"), ("-1", "--bands"), ("purple", "purple")])
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, named: str) -> None:
    image = scene(tmp_path / "all", 1, 2, 3, 4, photometric="MINISBLACK")
    labels, out = image.parent / "crops.gpkg", tmp_path / "t"
    words = [*map(str, ("prepare", "vector", image, "--labels", labels, "--out", out))]
    words += ["--tile-px", "32", "--overlap", "0", "--block-px", "32", "--buffer-px", "0"]
    with pytest.raises(SystemExit) as ended:
        main([*words, f"--bands={wrong}"])
    assert named in str(ended.value.code)
    with pytest.raises(SystemExit) as ended:
        main([*words, "--bands", "4", "3", "2"])
    assert not ended.value.code
    assert "bands: 4 nir, 3 red, 2 green" in capsys.readouterr().out
    assert json.loads((tmp_path / "t" / "tileset.json").read_text())["settings"]["bands"] == [4, 3, 2]
