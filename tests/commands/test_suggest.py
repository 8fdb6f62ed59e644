"""`geograft suggest`: what is suggested, what is not, and what the layer says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.dom import minidom

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
from affine import Affine
from numpy import ndarray
from shapely import box

from geograft.card import read_card
from geograft.cli import main
from geograft.commands.prepare import prepare
from geograft.commands.suggest import suggest
from geograft.commands.train import train
from geograft.config import PrepareConfig, Recipe, SuggestConfig
from geograft.dataset.sources import VectorSource
from geograft.errors import InputError, OutputError, SettingError
from geograft.inference.embedding import Encoder
from geograft.inference.uncertainty import Doubt, Measure
from geograft.legend import Legend
from geograft.mapping import pool as looking
from geograft.metrics.applicability import KNOWN, fit
from tests.support.full_disk import files_no_larger_than
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster
from tests.support.runs import Means, Pointwise, make_run

FIELDS = Legend(("background", "fields"))
CPU = SuggestConfig(device="cpu", backend="torch", tiles=100)


class FirstBand(Doubt):
    """Is half sure where the first band is 128, and sure where it is black or white."""

    @classmethod
    def load(cls, runs: Sequence[Path], measure: Measure, **options: Any) -> "FirstBand":
        return cls([Pointwise(read_card(runs[0]), batch_size=options["batch_size"])], measure)


class BandMeans(Means, Encoder):
    """Sees the means of the bands."""

    def __init__(self) -> None: ...


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no network look: doubt comes from the first band, features are the means of the bands."""
    monkeypatch.setattr("geograft.commands.suggest.Doubt", FirstBand)
    monkeypatch.setattr("geograft.commands.suggest.load_encoder", lambda *_: BandMeans())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", FIELDS)


def layer(path: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_file(path, layer="suggestions")


def flat(*values: int, size: int = 32) -> ndarray:
    """Return tiles of one value each, side by side, in three bands."""
    return np.concatenate([np.full((3, size, size), value, np.uint8) for value in values], axis=2)


@pytest.fixture(scope="module")
def half(fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tile set of the scene with fields, of which only the left half was looked at by the annotator."""
    folder = tmp_path_factory.mktemp("half")
    left = geopandas.GeoDataFrame(geometry=[box(*(TENTH_METRE @ (0, 256)), *(TENTH_METRE @ (128, 0)))], crs=UTM12)
    left.to_file(folder / "left.gpkg")
    config = PrepareConfig(tile_px=32, overlap=0.0, split="block", block_px=64, buffer_px=0, val=0.2, test=0.2)
    source = VectorSource(images=(fields / "scene.tif",), labels=fields / "fields.gpkg", aoi=folder / "left.gpkg")
    prepare(source, folder / "tiles", config)
    return folder / "tiles"


def test_a_real_run_suggests_ground_that_nobody_labelled(half: Path, tmp_path: Path) -> None:
    recipe = Recipe().changed(model={"architecture": "unet"}, train={"epochs": 1, "device": "cpu"})
    run = train(half, tmp_path / "run", recipe).run
    found = suggest(run, (half,), tmp_path / "next.gpkg", CPU)
    frame = layer(tmp_path / "next.gpkg")
    assert frame["rank"].tolist() == list(range(1, 33))
    assert frame["col"].min() == 128
    assert len(set(zip(frame["row"], frame["col"], strict=True))) == 32
    assert frame["uncertainty"].between(0, 1).all()
    assert (frame["novelty"] > 0).all()
    assert (frame["score"].diff().dropna() <= 1e-6).all()
    assert found.labelled == 32
    again = suggest(run, (half,), tmp_path / "again.gpkg", SuggestConfig(device="cpu", backend="torch", tiles=5))
    assert again.tiles == found.tiles[:5]
    spread = SuggestConfig(device="cpu", backend="torch", doubt="spread", tta=2)
    apart = suggest((run, run), (half,), tmp_path / "spread.gpkg", spread)
    assert 0 < max(one.doubt for one in apart.tiles) < 0.5


@pytest.mark.usefixtures("looks")
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
    assert found.lines()[0].endswith("next.gpkg: 8 tiles to label, of 8 that are not labelled")


@pytest.mark.usefixtures("looks")
def test_the_most_of_what_is_doubtful_comes_first_and_no_kind_twice(run: Path, tmp_path: Path) -> None:
    """Ten tiles of a doubtful kind, one of another, nine that the run is sure of."""
    raster = write_raster(tmp_path / "scene.tif", flat(*[128] * 10, 100, *[255] * 9))
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU)
    columns = [one.window.col // 32 for one in found.tiles]
    assert columns[0] < 10
    assert columns[1] == 10
    assert sum(one.score for one in found.tiles[:2]) > 0.9
    assert columns[2] == 11
    assert [one.doubt for one in found.tiles[3:12]] == sorted((one.doubt for one in found.tiles[3:12]), reverse=True)


@pytest.mark.usefixtures("looks")
def test_novelty_says_how_unlike_the_training_a_tile_looks(run: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "scene.tif", flat(*[128] * 10, 100))
    rng = np.random.default_rng(0)
    fit(rng.normal([128] * 3, 3, (40, 3))).write(run / KNOWN)
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU)
    novelty = {one.window.col // 32: one.novelty or 0 for one in found.tiles}
    assert novelty.pop(10) > 1
    assert max(novelty.values()) < 1
    assert not any(KNOWN in note for note in found.notes)


@pytest.mark.usefixtures("looks")
def test_a_tile_is_worth_what_its_quarters_show(run: Path, tmp_path: Path) -> None:
    """Two kinds of doubtful ground: most tiles are of one, and the one that shows both stands for all."""
    both = np.concatenate([flat(120, size=32)[:, :, :16], flat(136, size=32)[:, :, :16]], axis=2)
    pixels = np.concatenate([flat(120, 120, 120), both, flat(136, 136, 136)], axis=2)
    raster = write_raster(tmp_path / "scene.tif", pixels)
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU)
    assert found.tiles[0].window.col == 96
    assert found.tiles[0].score == pytest.approx(1)


def test_cells_and_quarters_hold_the_doubt_of_their_pixels() -> None:
    """A tile of 3 x 3 cells of 4 pixels, the last row and column of which lie half beyond it."""
    doubt = np.random.default_rng(0).random((2, 10, 10), np.float32)
    cells = looking.in_cells(doubt, 4)
    assert cells.shape == (2, 3, 3)
    assert cells[1, 0, 1] == pytest.approx(doubt[1, :4, 4:8].mean())
    assert 16 * cells.sum() == pytest.approx(doubt.sum(), rel=1e-5)
    seen = np.ones((3, 3), bool)
    seen[2, 2] = False
    features = np.arange(8, dtype=np.float32)[:, None]
    looks, unsure = looking.quarters(features, cells[0], seen)
    # Two rows and columns of cells lie in the first half; the last quarter holds the cell without features alone.
    assert looks[:, 0].tolist() == [2, 3.5, 6.5]
    assert unsure == pytest.approx([cells[0, :2, :2].sum(), cells[0, :2, 2].sum(), cells[0, 2, :2].sum()])


@pytest.mark.usefixtures("looks")
def test_labelled_ground_is_found_by_place_on_other_rasters(
    run: Path, half: Path, fields: Path, tmp_path: Path
) -> None:
    """The same ground at another date, with pixels of another size and in another CRS."""
    moved = TENTH_METRE @ Affine.translation(-64, 0) @ Affine.scale(2)
    raster = write_raster(tmp_path / "later.tif", textured(3, 128, 192), moved)
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU, known=half)
    # 64-pixel tiles of the old raster: two columns before it, then two that are labelled, then two that are not.
    assert sorted({one.window.col for one in found.tiles}) == [0, 96, 128, 160]
    assert found.labelled == 8


@pytest.mark.usefixtures("looks")
def test_rasters_of_several_crs_are_shown_in_degrees_and_without_one_below_zero(run: Path, tmp_path: Path) -> None:
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


@pytest.mark.usefixtures("looks")
def test_only_what_can_be_labelled_is_suggested(run: Path, tmp_path: Path) -> None:
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


@pytest.mark.usefixtures("looks")
def test_of_many_tiles_the_most_doubtful_are_compared(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "MOST_TILES", 4)
    raster = write_raster(tmp_path / "scene.tif", flat(*range(1, 120, 6)))
    found = suggest(run, (raster,), tmp_path / "next.gpkg", CPU)
    assert found.seen == 20
    assert sorted(one.window.col // 32 for one in found.tiles) == [16, 17, 18, 19]


@pytest.mark.usefixtures("looks")
def test_the_order_of_the_rasters_has_no_say(run: Path, tmp_path: Path) -> None:
    one = write_raster(tmp_path / "a.tif", textured(3, 64, 96))
    two = write_raster(tmp_path / "b.tif", textured(3, 64, 64, 1))
    for name, rasters in (("ab", (one, two)), ("ba", (two, one))):
        suggest(run, rasters, tmp_path / f"{name}.gpkg", CPU)
    there, back = layer(tmp_path / "ab.gpkg"), layer(tmp_path / "ba.gpkg")
    assert there.drop(columns="score").equals(back.drop(columns="score"))


@pytest.mark.usefixtures("looks")
def test_what_cannot_be_suggested_is_one_line_and_no_file(run: Path, half: Path, fields: Path, tmp_path: Path) -> None:
    raster, out = fields / "scene.tif", tmp_path / "next.gpkg"
    empty = write_raster(tmp_path / "empty.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
    grey = write_raster(tmp_path / "grey.tif", textured(1, 64, 64))
    labelled = write_raster(tmp_path / "labelled.tif", textured(3, 64, 64))
    for given, known, words in (
        ((), None, "No raster was given"),
        ((empty,), None, "no valid pixel to label"),
        ((grey,), None, "1 band"),
        ((labelled,), half, "labelled already"),
        ((half, raster), None, "is a tile set: give it alone"),
        ((raster,), raster, "is not a tile set"),
    ):
        with pytest.raises(InputError, match=words):
            suggest(run, given, out, CPU, known=known)
    with pytest.raises(SettingError, match="needs several answers"):
        suggest(run, (raster,), out, SuggestConfig(doubt="spread"))
    with pytest.raises(OutputError, match=r"written as \.gpkg"):
        suggest(run, (raster,), tmp_path / "next.shp", CPU)
    with files_no_larger_than(4096), pytest.raises(OutputError, match="cannot be written"):
        suggest(run, (raster,), out, CPU)
    assert not list(tmp_path.glob("*next*"))
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        suggest(run, (raster,), out, CPU)


@pytest.mark.usefixtures("looks")
def test_the_command_line_prints_the_first_ones(
    run: Path, fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "next.gpkg"
    with pytest.raises(SystemExit) as end:
        main(["suggest", str(run), str(fields / "scene.tif"), "--out", str(out), "--tiles", "12", "--device", "cpu"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"{out}: 12 tiles to label, of 64 that are not labelled" in said
    assert "and 2 more" in said
    assert f"Note: {run} does not say which ground is labelled" in said
    assert f"Note: {run} holds no {KNOWN}" in said
    with pytest.raises(SystemExit, match=r"geograft: .*exists already"):
        main(["suggest", str(run), str(fields / "scene.tif"), "--out", str(out)])
