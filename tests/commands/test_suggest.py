"""`geograft suggest`: which tiles are suggested and skipped, their order, and the layer that is written."""

from dataclasses import replace
from pathlib import Path
from typing import Literal
from xml.dom import minidom

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
from affine import Affine
from numpy import ndarray
from shapely import box

from geograft.card import FEATURES_FILE
from geograft.cli import main
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.commands.suggest import suggest
from geograft.commands.train import train
from geograft.commands.units import suggest_units
from geograft.config import PredictConfig, PrepareConfig, Recipe, SuggestConfig
from geograft.dataset.sources import VectorSource
from geograft.errors import InputError, OutputError, SettingError
from geograft.geo.grid import Window
from geograft.legend import Legend
from geograft.mapping import pool
from geograft.mapping.units import UnitGrid
from geograft.metrics.applicability import fit_applicability
from tests.support.full_disk import max_file_size
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster
from tests.support.runs import BandMeans, ContextPredictor, PixelwisePredictor, make_run

FIELDS = Legend(("background", "fields"))
CPU = SuggestConfig(device="cpu", backend="torch", tiles=100, first=0)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use no network: features are the means of the bands, and uncertainty comes from the first band.

    It is largest where that is 128; 0 and 255 are certain.
    """
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)
    monkeypatch.setattr("geograft.commands.suggest.load_cell_encoder", lambda *_: BandMeans())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", FIELDS)


def layer(path: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_file(path, layer="suggestions")


def flat(*values: int, size: int = 32) -> ndarray:
    """Return adjacent tiles of one value each, in three bands."""
    return np.concatenate([np.full((3, size, size), value, np.uint8) for value in values], axis=2)


@pytest.fixture(scope="module")
def half(fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tile set of the scene with fields, of which only the left half is annotated."""
    folder = tmp_path_factory.mktemp("half")
    left = geopandas.GeoDataFrame(geometry=[box(*(TENTH_METRE @ (0, 256)), *(TENTH_METRE @ (128, 0)))], crs=UTM12)
    left.to_file(folder / "left.gpkg")
    config = PrepareConfig(tile_px=32, overlap=0.0, split="block", block_px=64, buffer_px=0, val=0.2, test=0.2)
    source = VectorSource(images=(fields / "scene.tif",), labels=fields / "fields.gpkg", aoi=folder / "left.gpkg")
    prepare(source, folder / "tiles", config)
    return folder / "tiles"


def test_a_trained_run_suggests_only_unlabelled_tiles(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe().with_settings(model={"architecture": "unet"}, train={"epochs": 1, "device": "cpu"})
    run = train(half, tmp_path / "run", recipe).run
    found = suggest(run, (half,), tmp_path / "next.gpkg", CPU)
    frame = layer(tmp_path / "next.gpkg")
    assert frame["rank"].tolist() == list(range(1, 33))
    assert frame["col"].min() == 128
    assert len(set(zip(frame["row"], frame["col"], strict=True))) == 32
    assert frame["uncertainty"].between(0, 1).all()
    assert (frame["dissimilarity"] > 0).all()
    assert (frame["score"].diff().dropna() <= 1e-6).all()
    assert found.labelled_tiles == 32
    # By workers, in units of 3 x 3 tiles: the same bytes by a real network.
    units = "geograft.mapping.pool_units.plan_units"
    monkeypatch.setattr(units, lambda tiles, *_, **__: UnitGrid(tiles.height, tiles.width, 96))
    shared = suggest_units(run, half, tmp_path / "shared", CPU)
    assert (shared.units, shared.suggestions.tiles) == (9, found.tiles)
    assert (tmp_path / "shared" / "suggestions.gpkg").read_bytes() == (tmp_path / "next.gpkg").read_bytes()
    five = suggest(run, (half,), tmp_path / "five.gpkg", SuggestConfig(device="cpu", backend="torch", tiles=5))
    assert five.tiles == found.tiles[:5]
    disagreement = SuggestConfig(device="cpu", backend="torch", acquisition="disagreement", tta=2)
    ensemble = suggest((run, run), (half,), tmp_path / "ensemble.gpkg", disagreement)
    assert 0 < max(one.uncertainty for one in ensemble.tiles) < 0.5


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("acquisition", ["entropy", "disagreement"])
def test_uncertainty_is_that_of_the_map(
    run: Path, tmp_path: Path, acquisition: Literal["entropy", "disagreement"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    monkeypatch.setattr("geograft.mapping.windows.PANEL_BYTES", 1)
    runs = (run,) if acquisition == "entropy" else (run, run)
    pixels = textured(3, 100, 140)
    pixels[:, 30:60, 20:90] = 0
    raster = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    mapped = PredictConfig(uncertainty=True, probabilities="float16", device="cpu", backend="torch")
    predict(runs, (raster,), tmp_path / "map.tif", mapped)
    with rasterio.open(tmp_path / "map.uncertainty.tif") as written:
        uncertainty = written.read(1)
    found = suggest(runs, (raster,), tmp_path / "next.gpkg", replace(CPU, acquisition=acquisition))
    assert len(found.tiles) > 10
    for one in found.tiles:
        assert one.uncertainty == pytest.approx(np.nanmean(uncertainty[one.window.slices].astype(float)), abs=3e-4)
    assert np.ptp([one.uncertainty for one in found.tiles]) > 0.01


@pytest.mark.usefixtures("no_network")
def test_windows_match_outlines_and_the_style_fits_the_layer(run: Path, tmp_path: Path) -> None:
    """72 x 90 pixels: two rows of three tiles, the last of each narrower; then a quarter of a row."""
    raster = write_raster(tmp_path / "scene.tif", textured(3, 72, 90))
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU)
    frame = layer(tmp_path / "next.gpkg")
    assert frame.crs == UTM12
    places = sorted(zip(frame["row"], frame["col"], frame["height"], frame["width"], strict=True))
    assert places == [
        (0, 0, 32, 32),
        (0, 32, 32, 32),
        (0, 64, 32, 26),
        (32, 0, 32, 32),
        (32, 32, 32, 32),
        (32, 64, 32, 26),
        (64, 0, 8, 32),
        (64, 32, 8, 32),
    ]
    for one in frame.itertuples():
        corners = (TENTH_METRE @ (one.col, one.row + one.height), TENTH_METRE @ (one.col + one.width, one.row))
        assert one.geometry.equals_exact(box(*corners[0], *corners[1]), 1e-6) or one.geometry.equals(
            box(*corners[0], *corners[1])
        )
        assert one.raster == str(raster)
    style = pyogrio.read_dataframe(tmp_path / "next.gpkg", layer="layer_styles").iloc[0]
    assert (style.f_table_name, bool(style.useAsDefault)) == ("suggestions", True)
    page = minidom.parseString(style.styleQML)
    steps = [
        (float(r.getAttribute("lower")), float(r.getAttribute("upper"))) for r in page.getElementsByTagName("range")
    ]
    assert [sum(low < rank <= high for low, high in steps) for rank in frame["rank"]] == [1] * 8
    assert page.getElementsByTagName("renderer-v2")[0].getAttribute("attr") in frame.columns
    assert "next.gpkg: 8 tiles to label, of 8 " in found.lines()[0]


@pytest.mark.usefixtures("no_network")
def test_the_largest_uncertain_cluster_comes_first_and_each_cluster_once(run: Path, tmp_path: Path) -> None:
    """Ten uncertain tiles of one kind, one of another, nine certain ones."""
    raster = write_raster(tmp_path / "scene.tif", flat(*[128] * 10, 100, *[255] * 9))
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU)
    columns = [one.window.col // 32 for one in found.tiles]
    assert columns[0] < 10
    assert columns[1] == 10
    assert sum(one.score for one in found.tiles[:2]) > 0.9
    assert columns[2] == 11
    assert [one.uncertainty for one in found.tiles[3:12]] == sorted(
        (one.uncertainty for one in found.tiles[3:12]), reverse=True
    )


@pytest.mark.usefixtures("no_network")
def test_dissimilarity_is_above_1_outside_the_area_of_applicability(run: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "scene.tif", flat(*[128] * 10, 100))
    rng = np.random.default_rng(0)
    fit_applicability(rng.normal([128] * 3, 3, (40, 3))).write(run / FEATURES_FILE)
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU)
    dissimilarity = {one.window.col // 32: one.dissimilarity or 0 for one in found.tiles}
    assert dissimilarity.pop(10) > 1
    assert max(dissimilarity.values()) < 1
    assert not any(FEATURES_FILE in note for note in found.notes)


@pytest.mark.usefixtures("no_network")
def test_a_tile_with_quarters_of_both_kinds_covers_both(run: Path, tmp_path: Path) -> None:
    """Two kinds of uncertain tiles: a tile that contains both covers all the uncertainty."""
    both = np.concatenate([flat(120, size=32)[:, :, :16], flat(136, size=32)[:, :, :16]], axis=2)
    pixels = np.concatenate([flat(120, 120, 120), both, flat(136, 136, 136)], axis=2)
    raster = write_raster(tmp_path / "scene.tif", pixels)
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU)
    assert found.tiles[0].window.col == 96
    assert found.tiles[0].score == pytest.approx(1)


def test_cells_and_quarters_sum_the_uncertainty_of_their_pixels() -> None:
    """A tile of 3 x 3 cells of 4 pixels; half of the last row and column of cells is outside the tile."""
    uncertainty = np.random.default_rng(0).random((2, 10, 10), np.float32)
    cells = pool.cell_means(uncertainty, 4)
    assert cells.shape == (2, 3, 3)
    assert cells[1, 0, 1] == pytest.approx(uncertainty[1, :4, 4:8].mean())
    assert 16 * cells.sum() == pytest.approx(uncertainty.sum(), rel=1e-5)
    mask = np.ones((3, 3), bool)
    mask[2, 2] = False
    features = np.arange(8, dtype=np.float32)[:, None]
    embeddings, by_quarter = pool.pool_quarters(features, cells[0], mask)
    # Two rows and columns of cells lie in the first half; the last quarter holds the cell without features alone.
    assert embeddings[:, 0].tolist() == [2, 3.5, 6.5]
    assert by_quarter == pytest.approx([cells[0, :2, :2].sum(), cells[0, :2, 2].sum(), cells[0, 2, :2].sum()])


@pytest.mark.usefixtures("no_network")
def test_labelled_areas_are_found_by_coordinates_on_other_rasters(
    run: Path, half: Path, fields: Path, tmp_path: Path
) -> None:
    """The same area at another date, with another pixel size and another grid."""
    moved = TENTH_METRE @ Affine.translation(-64, 0) @ Affine.scale(2)
    raster = write_raster(tmp_path / "later.tif", textured(3, 128, 192), moved)
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU, known=half)
    # 64-pixel tiles of the old raster: two columns before it, then two that are labelled, then two that are not.
    assert sorted({one.window.col for one in found.tiles}) == [0, 96, 128, 160]
    assert found.labelled_tiles == 8


@pytest.mark.usefixtures("no_network")
def test_the_layer_is_in_wgs84_for_several_crs_and_in_pixels_without_one(run: Path, tmp_path: Path) -> None:
    one = write_raster(tmp_path / "a.tif", textured(3, 32, 64))
    two = write_raster(tmp_path / "b.tif", textured(3, 32, 64, 1), crs="EPSG:32613")
    suggest(run, (one, two), tmp_path / "next.gpkg", CPU)
    frame = layer(tmp_path / "next.gpkg")
    assert frame.crs == "EPSG:4326"
    assert set(frame["raster"]) == {str(one), str(two)}
    here = frame[frame["raster"] == str(one)].to_crs(UTM12).total_bounds
    assert here == pytest.approx([528000, 4978996.8, 528006.4, 4979000], abs=1e-3)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        bare = write_raster(tmp_path / "bare.tif", textured(3, 32, 64), Affine.identity(), None)
    suggest(run, (bare,), tmp_path / "bare.gpkg", CPU)
    assert layer(tmp_path / "bare.gpkg").total_bounds.tolist() == [0, -32, 64, 0]


@pytest.mark.usefixtures("no_network")
def test_tiles_without_valid_pixels_or_outside_the_aoi_are_not_suggested(run: Path, tmp_path: Path) -> None:
    pixels = textured(3, 32, 128)
    pixels[:, :, :64] = 0
    pixels[:, :, 60:64] = 9
    raster = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU)
    assert sorted(one.window.col for one in found.tiles) == [64, 96]
    there = geopandas.GeoDataFrame(geometry=[box(528009.6, 4978996.8, 528012.8, 4979000)], crs=UTM12)
    there.to_file(tmp_path / "aoi.gpkg")
    some = suggest(run, (raster,), tmp_path / "some.gpkg", CPU, aoi=tmp_path / "aoi.gpkg")
    assert [one.window.col for one in some.tiles] == [96]


@pytest.mark.usefixtures("no_network")
def test_only_the_most_uncertain_tiles_are_compared(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_CANDIDATES", 4)
    raster = write_raster(tmp_path / "scene.tif", flat(*range(1, 120, 6)))
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU)
    assert found.unlabelled_tiles == 20
    assert sorted(one.window.col // 32 for one in found.tiles) == [16, 17, 18, 19]


@pytest.mark.usefixtures("no_network")
def test_the_order_of_the_rasters_does_not_matter(run: Path, tmp_path: Path) -> None:
    one = write_raster(tmp_path / "a.tif", textured(3, 64, 96))
    two = write_raster(tmp_path / "b.tif", textured(3, 64, 64, 1))
    for name, rasters in (("ab", (one, two)), ("ba", (two, one))):
        suggest(run, rasters, tmp_path / f"{name}.gpkg", CPU)
    there, back = layer(tmp_path / "ab.gpkg"), layer(tmp_path / "ba.gpkg")
    assert there.drop(columns="score").equals(back.drop(columns="score"))


@pytest.mark.usefixtures("no_network")
def test_invalid_input_is_refused_and_leaves_no_file(run: Path, half: Path, fields: Path, tmp_path: Path) -> None:
    raster, out = fields / "scene.tif", tmp_path / "next.gpkg"
    empty = write_raster(tmp_path / "empty.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
    grey = write_raster(tmp_path / "grey.tif", textured(1, 64, 64))
    labelled = write_raster(tmp_path / "labelled.tif", textured(3, 64, 64))
    for given, known, fact in (
        ((), None, "raster"),
        ((empty,), None, r"empty\.tif.*nodata"),
        ((grey,), None, "1 band"),
        ((labelled,), half, r"labelled\.tif: .*labelled already"),
        ((half, raster), None, rf"{half} is a tile set"),
        ((raster,), raster, rf"{raster} is not a tile set"),
    ):
        with pytest.raises(InputError, match=fact):
            suggest(run, given, out, CPU, known=known)
    with pytest.raises(SettingError, match=r"disagreement.*--ensemble.*--tta"):
        suggest(run, (raster,), out, SuggestConfig(acquisition="disagreement"))
    with pytest.raises(OutputError, match=r"next\.shp: .*\.gpkg"):
        suggest(run, (raster,), tmp_path / "next.shp", CPU)
    with max_file_size(4096), pytest.raises(OutputError, match=r"next\.gpkg"):
        suggest(run, (raster,), out, CPU)
    assert not list(tmp_path.glob("*next*"))
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"next\.gpkg exists"):
        suggest(run, (raster,), out, CPU)


@pytest.mark.usefixtures("no_network")
def test_the_command_line_prints_the_first_suggestions(
    run: Path, fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "next.gpkg"
    with pytest.raises(SystemExit) as end:
        main(["suggest", str(run), str(fields / "scene.tif"), "--out", str(out), "--tiles", "12", "--device", "cpu"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert f"{out}: 12 tiles to label, of 64 " in printed
    assert "and 2 more" in printed
    assert any("Note: " in line and str(run) in line and "--known" in line for line in printed.splitlines())
    assert any("Note: " in line and FEATURES_FILE in line for line in printed.splitlines())
    with pytest.raises(SystemExit, match=r"geograft: .*next\.gpkg exists"):
        main(["suggest", str(run), str(fields / "scene.tif"), "--out", str(out)])


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("trained_m", "noted"), [(0.1, False), (0.16, True)])
def test_another_resolution_is_noted(trained_m: float, noted: bool, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", FIELDS, resolution_m=trained_m)
    raster = write_raster(tmp_path / "scene.tif", flat(100, 128, 140))
    notes = suggest(run, raster, tmp_path / "out.gpkg", CPU).notes
    assert [("0.1 m" in note and "0.16 m" in note) for note in notes].count(True) == noted


def candidates(values: ndarray) -> list[pool.Candidate]:
    """Return tiles with these values as uncertainty, probability of the positive class and embedding."""
    return [
        pool.Candidate(0, Window(i, 0, 1, 1), v, 1.0, np.array([[v]], np.float32), np.array([v]), None, (1 - v, v), 0)
        for i, v in enumerate(values.tolist())
    ]


def test_what_is_estimated_from_the_first_tiles_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 tiles, of which 20 are kept for comparison, five are drawn 600 times. The uncertain ones are others."""
    monkeypatch.setattr(pool, "MAX_CANDIDATES", 20)
    values = np.random.default_rng(0).beta(0.5, 1.5, 40)
    means = []
    for seed in range(600):
        found = pool.Pool()
        for one in candidates(values):
            found.add(replace(one, lot=pool.draw_lot(seed, "scene.tif", one.window)))
        found.prune()
        means.append(np.mean([one.uncertainty for one in pool.draw_first(found.sample, 5, seed)]))
    assert abs(np.mean(means) - values.mean()) < 4 * np.std(means) / np.sqrt(len(means))
    assert np.mean([one.uncertainty for one in found.candidates]) > values.mean() + 0.1


@pytest.mark.usefixtures("no_network")
def test_a_place_without_labels_begins_with_random_tiles(run: Path, half: Path, fields: Path, tmp_path: Path) -> None:
    elsewhere = write_raster(tmp_path / "hill.tif", textured(3, 128, 192), TENTH_METRE @ Affine.translation(9000, 0))
    config = replace(CPU, tiles=12, first=None)
    found = suggest(run, elsewhere, tmp_path / "hill.gpkg", config, known=half)
    assert [one.origin for one in found.tiles] == ["random"] * 5 + ["suggested"] * 7
    assert len({one.window for one in found.tiles}) == 12
    assert any("at random" in line for line in found.lines())
    frame = layer(tmp_path / "hill.gpkg")
    assert frame["origin"].tolist() == [one.origin for one in found.tiles]
    assert (set(frame["role"]), set(frame["labelled"]), set(frame["scene"])) == ({"training"}, {False}, {"hill"})
    # The same tiles again; others with another seed; fewer are the first of them; the uncertain ones without.
    assert suggest(run, elsewhere, tmp_path / "again.gpkg", config, known=half).tiles == found.tiles
    other = suggest(run, elsewhere, tmp_path / "other.gpkg", replace(config, seed=1), known=half)
    assert {one.window for one in other.tiles[:5]} != {one.window for one in found.tiles[:5]}
    few = suggest(run, elsewhere, tmp_path / "few.gpkg", replace(config, tiles=3), known=half)
    assert [(one.rank, one.window, one.origin) for one in few.tiles] == [
        (one.rank, one.window, one.origin) for one in found.tiles[:3]
    ]
    here = suggest(run, fields / "scene.tif", tmp_path / "here.gpkg", config, known=half)
    assert {one.origin for one in here.tiles} == {"suggested"}
    asked = suggest(run, fields / "scene.tif", tmp_path / "asked.gpkg", replace(config, first=2), known=half)
    assert [one.origin for one in asked.tiles[:3]] == ["random", "random", "suggested"]
