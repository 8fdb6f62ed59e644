"""Bands of a raster or tile set that have the run's names in another order: a note says what --bands would fix it."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from shapely import box

from geograft.card import read_card
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.commands.review import review
from geograft.commands.suggest import suggest
from geograft.config import PredictConfig, PrepareConfig, SuggestConfig
from geograft.dataset.sources import VectorSource
from geograft.errors import InputError
from tests.commands.test_predict import read
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster
from tests.support.runs import BandMeans, ContextPredictor, PixelwisePredictor, make_run

NAMES = ("nir", "red", "green")


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", band_names=NAMES)


def scene(path: Path, *names: str | None, numbers: tuple[int, ...] = (), cols: int = 50) -> Path:
    """Write a raster with the given descriptions; `numbers` are the seeds of its bands."""
    pixels = np.concatenate([textured(1, 40, cols, seed) for seed in numbers or range(len(names))])
    write_raster(path, pixels, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as raster:
        raster.descriptions = names
    return path


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_names_in_another_order_give_a_note_with_the_bands_that_fix_it(
    tmp_path: Path, run: Path, order: tuple[int, int, int]
) -> None:
    names = [NAMES[number] for number in order]
    predict(run, (scene(tmp_path / "right.tif", *NAMES),), tmp_path / "expected.tif")
    raster = scene(tmp_path / "scene.tif", *names, numbers=order)
    notes = predict(run, (raster,), tmp_path / "map.tif").notes
    assert (notes == ()) == (order == (0, 1, 2))
    bands = tuple(names.index(name) + 1 for name in NAMES)
    for note in notes:
        assert all(part in note for part in ("scene.tif", ", ".join(names), ", ".join(NAMES)))
        assert f"--bands {' '.join(map(str, bands))}" in note
    fixed = predict(run, (raster,), tmp_path / "fixed.tif", PredictConfig(bands=bands))
    assert fixed.notes == ()
    np.testing.assert_array_equal(read(tmp_path / "fixed.tif"), read(tmp_path / "expected.tif"))


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        (("Red", "GREEN ", "NIR"), True),
        (("red", "green", "blue"), False),
        (("red", "green", "red"), False),
        (("red", "green", None), False),
        ((None, None, None), False),
        (("B4", "B3", "B8"), False),
    ],
)
def test_only_the_runs_own_names_are_known(
    tmp_path: Path, run: Path, names: tuple[str | None, ...], noted: bool
) -> None:
    notes = predict(run, (scene(tmp_path / "scene.tif", *names),), tmp_path / "map.tif", dry_run=True).notes
    assert bool(notes) == noted


def test_a_run_whose_bands_share_a_name_gives_no_note(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", band_names=("red", "red", "green"))
    raster = scene(tmp_path / "scene.tif", "green", "red", "red")
    assert predict(run, (raster,), tmp_path / "map.tif").notes == ()


def test_suggestions_give_the_same_note(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.commands.suggest.load_cell_encoder", lambda *_: BandMeans())
    right, other = scene(tmp_path / "right.tif", *NAMES, cols=80), scene(tmp_path / "other.tif", *NAMES[::-1], cols=80)
    found = suggest(run, (right, other), tmp_path / "next.gpkg")
    (note,) = (note for note in found.notes if "bands" in note)
    assert all(part in note for part in (other.name, ", ".join(NAMES), ", ".join(NAMES[::-1]), "--bands 3 2 1"))
    chosen = suggest(run, (other,), tmp_path / "chosen.gpkg", SuggestConfig(bands=(3, 2, 1)))
    assert not any("bands" in note for note in chosen.notes)


def test_tile_sets_give_the_same_note(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.commands.suggest.load_cell_encoder", lambda *_: BandMeans())
    raster = scene(tmp_path / "scene.tif", *NAMES[::-1], cols=128)
    field = geopandas.GeoDataFrame(geometry=[box(*(TENTH_METRE @ (10, 30)), *(TENTH_METRE @ (70, 5)))], crs=UTM12)
    field.to_file(tmp_path / "fields.gpkg")
    left = geopandas.GeoDataFrame(geometry=[box(*(TENTH_METRE @ (0, 40)), *(TENTH_METRE @ (64, 0)))], crs=UTM12)
    left.to_file(tmp_path / "left.gpkg")
    settings = PrepareConfig(tile_px=32, overlap=0.0, split="scene", val=0.0, test=1.0)
    tiles = tmp_path / "tiles"
    source = VectorSource((raster,), tmp_path / "fields.gpkg", aoi=tmp_path / "left.gpkg")
    legend = prepare(source, tiles, settings).meta.legend
    replace(read_card(run), legend=legend).write(run)
    notes = {
        "review": review(run, tmp_path / "errors", tiles).notes,
        "suggest": suggest(run, (tiles,), tmp_path / "next.gpkg").notes,
    }
    for found in notes.values():
        (note,) = (note for note in found if "bands" in note)
        assert all(part in note for part in (str(tiles), ", ".join(NAMES), ", ".join(NAMES[::-1]), "--bands 3 2 1"))


def test_one_note_per_map(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    rasters = [scene(tmp_path / f"{name}.tif", "red", "green", "nir") for name in "ab"]
    rasters = [scene(tmp_path / "first.tif", *NAMES), *rasters]
    (note,) = predict(run, rasters, tmp_path / "map.tif").notes
    assert "a.tif" in note
    assert len(predict(run, rasters, tmp_path / "maps").notes) == 2


def test_a_raster_with_more_bands_is_told_which_to_choose(tmp_path: Path, run: Path) -> None:
    raster = scene(tmp_path / "scene.tif", "blue", "green", "red", "nir")
    with pytest.raises(InputError, match=r"--bands 4 3 2\.$"):
        predict(run, (raster,), tmp_path / "map.tif")
    with pytest.raises(InputError, match=r"--bands\.$"):
        predict(run, (scene(tmp_path / "other.tif", "a", "b", "c", "d"),), tmp_path / "map.tif")
