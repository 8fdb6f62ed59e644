"""Images of 1 to 20 bands in whole numbers and floats, and spectral indices, from the tile set to the map."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas
import numpy as np
import pytest
import torch
from affine import Affine
from numpy import ndarray
from shapely import box

from geograft.card import CARD, ModelCard, read_card
from geograft.cli import main
from geograft.commands.audit import audit
from geograft.commands.evaluate import evaluate
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.commands.report import report
from geograft.commands.review import review
from geograft.commands.sample import sample
from geograft.commands.train import scaling_of, train, training_data
from geograft.config import PredictConfig, PrepareConfig, Recipe, SampleConfig
from geograft.dataset.folds import write_derived_set
from geograft.dataset.sources import DstlSource, VectorSource
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Window
from geograft.geo.rasters.mosaic import Mosaic
from geograft.geo.rasters.raster import Image
from geograft.indices import Index, append_indices
from geograft.inference.predictor import EnsemblePredictor
from geograft.networks.weights import InputScaling
from geograft.training.loader import Scaling, TileLoader
from tests.commands.test_predict import read
from tests.support.rasters import TENTH_METRE, UTM12, write_raster
from tests.support.training import TinyNetwork

pytestmark = pytest.mark.usefixtures("only_torch")

TINY = Recipe().with_settings(model={"architecture": "unet"}, train={"epochs": 1, "augment": "none", "workers": 0})
BLOCKS = PrepareConfig(tile_px=32, overlap=0.0, split="block", block_px=32, buffer_px=0, val=0.2, test=0.2)
MAPPED = PredictConfig(
    probabilities="float16", uncertainty=True, window_px=32, overlap=0.25, backend="torch", batch_size=4
)
EDGE = 96


def crops(bands: int, dtype: str, seed: int = 0) -> tuple[ndarray, list[Window]]:
    """Return noise of `bands` bands, and the windows in which the last one is brighter than the first."""
    top = {"uint8": 200, "uint16": 9000, "float32": 0.9}[dtype]
    noise = np.random.default_rng(seed).uniform(0.2 * top, 0.4 * top, (bands, EDGE, EDGE))
    windows = [Window(16 * row, 16 * ((row + col) % 6), 16, 16) for row in range(6) for col in range(0, 6, 2)]
    for window in windows:
        noise[-1, *window.slices] += 0.5 * top
    return noise.astype(dtype), windows


def written(folder: Path, pixels: ndarray, windows: list[Window], name: str = "scene.tif", **options: Any) -> Path:
    """Write a scene, and the outlines of its crops to crops.gpkg."""
    corners = [(TENTH_METRE @ (w.col, w.stop_row), TENTH_METRE @ (w.stop_col, w.row)) for w in windows]
    shapes = [box(*low, *high) for low, high in corners]
    path = write_raster(folder / name, pixels, **options)
    geopandas.GeoDataFrame(geometry=shapes, crs=UTM12).to_file(folder / "crops.gpkg")
    return path


def prepared(folder: Path, scene: Path, *index: str, out: str = "tiles") -> TileSet:
    source = VectorSource((scene,), scene.parent / "crops.gpkg")
    return prepare(source, folder / out, replace(BLOCKS, index=index))


def arrays(tiles: TileSet) -> Iterator[ndarray]:
    for split in ("train", "val", "test"):
        samples = tiles.samples(split)
        for index in range(len(samples)):
            yield from samples[index]


def formula(bands: int) -> str:
    return f"(b{bands} - b1) / (b{bands} + b1)" if bands > 1 else "(b1 - 0.4) / (b1 + 0.4)"


# ------------------------------------------------------------------------------------------- an index is a further band


@pytest.fixture(scope="module", params=[1, 13, 20])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A float scene and a run trained on it with an index; the same scene with the index written as a band."""
    bands, folder = request.param, tmp_path_factory.mktemp("chain")
    pixels, windows = crops(bands, "float32")
    made = Index("nd", formula(bands)).compute(pixels)[None]
    plain = written(folder, pixels, windows)
    explicit = written(folder, np.concatenate([pixels, made]), windows, "explicit.tif")
    tiles = prepared(folder, plain, f"nd={formula(bands)}")
    train(folder / "tiles", folder / "run", TINY)
    # The same weights, told that the index is a band of the image.
    shutil.copytree(folder / "run", folder / "twin")
    card = read_card(folder / "run")
    replace(card, indices=()).write(folder / "twin")
    predict(folder / "run", (plain,), folder / "map.tif", MAPPED)
    return SimpleNamespace(bands=bands, folder=folder, plain=plain, explicit=explicit, tiles=tiles, card=card)


def test_colour_augmentation_does_not_change_an_index(chain: SimpleNamespace) -> None:
    recipe, unscaled = (
        TINY.with_settings(train={"augment": "colour"}),
        Scaling((0.0,) * (chain.bands + 1), (1.0,) * (chain.bands + 1)),
    )
    data = training_data(chain.tiles, recipe, unscaled)
    feed = TileLoader(data, recipe.train, torch.device("cpu"))
    for indices, (images, _) in zip(feed.batch_indices(0), feed.train(0), strict=True):
        for index, image in zip(indices, images.numpy(), strict=True):
            before, after = (np.sort(each.reshape(len(each), -1)) for each in (data.train[index][0], image))
            assert np.array_equal(before[-1], after[-1])
            assert (np.abs(before[:-1] - after[:-1]).max(axis=1) > 0.001).all()


def test_a_tile_set_with_an_index_equals_one_with_that_band(chain: SimpleNamespace, tmp_path: Path) -> None:
    twin = prepared(tmp_path, chain.explicit)
    meta = chain.tiles.meta
    assert (meta.mean, meta.std, meta.bands) == (twin.meta.mean, twin.meta.std, chain.bands)
    assert len(meta.band_names) == len(twin.meta.band_names) == chain.bands + 1
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(arrays(chain.tiles), arrays(twin), strict=True))
    assert meta == TileSet.open(chain.tiles.folder).meta


def test_statistics_are_of_training_pixels(chain: SimpleNamespace) -> None:
    trains = np.zeros((EDGE, EDGE), bool)
    for tile in chain.tiles.split("train"):
        trains[tile.window.slices] = True
    band = read(chain.explicit)[-1].astype(float)
    assert chain.tiles.meta.mean[-1] == pytest.approx(band[trains].mean(), rel=1e-12)
    assert chain.tiles.meta.std[-1] == pytest.approx(band[trains].std(), rel=1e-12)
    assert band[trains].mean() != pytest.approx(band.mean(), rel=1e-4)


def test_the_card_lists_the_indices(chain: SimpleNamespace) -> None:
    assert chain.card.indices == chain.tiles.meta.indices == (Index("nd", formula(chain.bands)),)
    assert chain.card.band_names[-1] == "nd"
    assert (chain.card.mean, chain.card.std) == (chain.tiles.meta.mean, chain.tiles.meta.std)
    assert chain.card.dtype == "float32"


def assert_same_map(mine: Path, theirs: Path) -> None:
    for what in ("tif", "probabilities.tif", "uncertainty.tif"):
        np.testing.assert_array_equal(read(mine / f"map.{what}"), read(theirs / f"map.{what}"))


def test_a_map_with_an_index_equals_one_with_that_band(chain: SimpleNamespace, tmp_path: Path) -> None:
    predict(chain.folder / "twin", (chain.explicit,), tmp_path / "map.tif", MAPPED)
    assert_same_map(tmp_path, chain.folder)
    assert np.unique(read(tmp_path / "map.probabilities.tif")).size > 10


def test_bands_in_another_order_and_sheets_give_the_same_map(chain: SimpleNamespace, tmp_path: Path) -> None:
    pixels = read(chain.plain)
    sheets = [
        write_raster(tmp_path / f"{cols}.tif", np.concatenate([pixels, pixels])[::-1, :, slice(*cols)], placed(cols[0]))
        for cols in pairwise((0, 50, EDGE))
    ]
    turned = tuple(range(chain.bands, 0, -1))
    predict(chain.folder / "run", sheets, tmp_path / "map.tif", replace(MAPPED, bands=turned))
    assert_same_map(tmp_path, chain.folder)


def placed(col: int) -> Affine:
    return TENTH_METRE @ Affine.translation(col, 0)


def test_a_killed_map_resumes_to_the_same_bytes(
    chain: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Narrow panels, so that what one leaves to the next is in the ledger.
    monkeypatch.setattr("geograft.mapping.plan.panel_width", lambda *_: 64)
    fail_after(3, monkeypatch)
    with pytest.raises(InputError, match=r"the cable is out .*%"):
        predict(chain.folder / "run", (chain.plain,), tmp_path / "map.tif", MAPPED)
    strips = len((tmp_path / ".map.part" / "strips.tsv").read_text().splitlines()) - 1
    predict(chain.folder / "run", (chain.plain,), tmp_path / "map.tif", MAPPED)
    assert strips > 0
    assert_same_map(tmp_path, chain.folder)


def fail_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the network fail once, after `batches` batches."""
    original, calls = EnsemblePredictor.__call__, iter(range(1000))

    def dying(self: EnsemblePredictor, pixels: ndarray, valid: ndarray) -> ndarray:
        if next(calls) == batches:
            raise InputError("the cable is out")
        return original(self, pixels, valid)

    monkeypatch.setattr(EnsemblePredictor, "__call__", dying)


def test_a_map_in_progress_with_another_index_is_not_resumed(
    chain: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(chain.folder / "run", tmp_path / "run")
    fail_after(3, monkeypatch)
    with pytest.raises(InputError, match="cable"):
        predict(run, (chain.plain,), tmp_path / "map.tif", MAPPED)
    replace(chain.card, indices=(Index("nd", "b1 * 2"),)).write(run)
    with pytest.raises(InputError, match=r"runs\.0\.card"):
        predict(run, (chain.plain,), tmp_path / "map.tif", MAPPED)


# ------------------------------------------------------------------------------------------------------ where and when


@pytest.mark.parametrize("resolution_m", [None, 0.25, 0.04])
def test_an_index_is_computed_from_resampled_bands_in_any_window(tmp_path: Path, resolution_m: float | None) -> None:
    pixels, _ = crops(3, "uint16")
    path = write_raster(tmp_path / "a.tif", pixels, nodata=7)
    indices = (Index("nd", "(b3 - b1) / (b3 + b1)"),)
    with Image.open(path) as image:
        bare = Mosaic([image.info], (), resolution_m)
        mosaic = Mosaic([image.info], (), resolution_m, indices)
    assert (mosaic.bands, mosaic.dtype, mosaic.grid) == (4, "float32", bare.grid)
    window = Window(-5, -5, mosaic.grid.height + 10, mosaic.grid.width + 10)
    found, valid = mosaic.read(window)
    np.testing.assert_array_equal(found, append_indices(*bare.read(window), indices))
    for part in (Window(3, 4, 20, 9), Window(30, 1, 7, 40)):
        np.testing.assert_array_equal(mosaic.read(part)[0], found[:, *part.relative_to(window).slices])
    assert (found[:, ~valid] == 0).all()


def scene_with_zeros(dtype: str) -> tuple[ndarray, ndarray]:
    """Return a scene of two bands with valid pixels where both are 0, and the mask of these."""
    pixels, _ = crops(2, dtype)
    pixels[:, 40:70, 30:80] = 0
    return pixels, (pixels == 0).all(axis=0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_non_finite_index_is_replaced_by_its_mean(tmp_path: Path, dtype: str) -> None:
    pixels, gap = scene_with_zeros(dtype)
    scene = written(tmp_path, pixels, crops(2, dtype)[1])
    tiles = prepared(tmp_path, scene, "nd=(b2-b1)/(b2+b1)")
    trains = np.zeros((EDGE, EDGE), bool)
    for tile in tiles.split("train"):
        trains[tile.window.slices] = True
    known = Index("nd", "(b2-b1)/(b2+b1)").compute(pixels)[trains & ~gap]
    assert tiles.meta.mean[2] == pytest.approx(known.mean(dtype=float))
    assert tiles.meta.std[2] == pytest.approx(known.std(dtype=float))
    assert tiles.meta.source["non-finite index"].startswith(f"nd at {100 * gap[trains].mean():.2g} %")
    scaling = Scaling(tiles.meta.mean, tiles.meta.std)
    samples = tiles.samples("train")
    for place, tile in enumerate(samples.tiles):
        image, label = samples[place]
        here = gap[tile.window.slices]
        assert (label != 255).all()
        assert (scaling(image)[2, here] == 0).all()
        assert np.isfinite(image).all()


def test_pixels_with_a_non_finite_index_are_mapped_with_its_mean(tmp_path: Path) -> None:
    pixels, gap = scene_with_zeros("float32")
    scene = written(tmp_path, pixels, crops(2, "float32")[1])
    prepared(tmp_path, scene, "nd=(b2-b1)/(b2+b1)")
    train(tmp_path / "tiles", tmp_path / "run", TINY)
    card = read_card(tmp_path / "run")
    with np.errstate(invalid="ignore"):
        made = Index("nd", "(b2-b1)/(b2+b1)").compute(pixels)
    made[gap] = card.mean[2]
    explicit = write_raster(tmp_path / "explicit.tif", np.concatenate([pixels, made[None]]))
    shutil.copytree(tmp_path / "run", tmp_path / "twin")
    replace(card, indices=()).write(tmp_path / "twin")
    config = replace(MAPPED, applicability=True)
    predict(tmp_path / "run", (scene,), tmp_path / "a.tif", config)
    predict(tmp_path / "twin", (explicit,), tmp_path / "b.tif", config)
    for what in ("tif", "probabilities.tif", "applicability.tif"):
        np.testing.assert_array_equal(read(tmp_path / f"a.{what}"), read(tmp_path / f"b.{what}"))
    assert (read(tmp_path / "a.tif")[0, gap] != 255).all()


def test_tiles_for_a_run_of_another_tile_set_are_filled_with_its_means(tmp_path: Path) -> None:
    pixels, gap = scene_with_zeros("uint16")
    tiles = prepared(tmp_path, written(tmp_path, pixels, crops(2, "uint16")[1]), "nd=(b2-b1)/(b2+b1)")
    samples = tiles.samples("train", means=(0, 0, 17.5))
    filled = [samples[i][0][2][gap[tile.window.slices]] for i, tile in enumerate(samples.tiles)]
    assert set(np.concatenate(filled).tolist()) == {17.5}


def test_an_index_that_is_never_finite_is_refused(tmp_path: Path) -> None:
    scene = written(tmp_path, *crops(2, "float32"))
    with pytest.raises(InputError, match=r"index x = b1 / \(b2 - b2\) "):
        prepared(tmp_path, scene, "x=b1/(b2-b2)")
    assert not (tmp_path / "tiles").exists()
    with pytest.raises(SettingError, match=r"\bb3\b"):
        prepared(tmp_path, scene, "x=b1/b3")


def test_nodata_masks_the_index_too(tmp_path: Path) -> None:
    pixels, windows = crops(2, "float32")
    pixels[:, :20], pixels[1, 20:40] = -1, np.nan
    tiles = prepared(tmp_path, written(tmp_path, pixels, windows, nodata=-1), "nd=(b2-b1)/(b2+b1)")
    assert "non-finite index" not in tiles.meta.source
    for split in ("train", "val", "test"):
        samples = tiles.samples(split)
        for place, tile in enumerate(samples.tiles):
            image, label = samples[place]
            hidden = np.arange(tile.window.row, tile.window.stop_row) < 40
            assert (image[:, hidden] == 0).all()
            assert ((label == 255).all(axis=1) == hidden).all()


# ------------------------------------------------------------------------------------------------ the same run, or not


def test_other_indices_give_another_fingerprint(tmp_path: Path) -> None:
    scene = written(tmp_path, *crops(3, "uint16"))
    names = {
        "none": (),
        "one": ("x=b1/b2",),
        "same": (" x = b1 / b2",),
        "other": ("x=b1/b3",),
        "two": ("x=b1/b2", "y=b3*b1"),
    }
    sets = {out: prepared(tmp_path, scene, *index, out=out) for out, index in names.items()}
    prints = {name: tiles.meta.fingerprint for name, tiles in sets.items()}
    assert prints.pop("same") == prints["one"]
    assert len(set(prints.values())) == 4
    train(sets["one"].folder, tmp_path / "run", TINY)
    with pytest.raises(SettingError, match=r"state\.ckpt.*tile set"):
        train(sets["other"].folder, tmp_path / "run", TINY, resume=True)
    for name in ("none", "other", "two"):
        with pytest.raises(InputError, match=r"indices \[.*\['b1 / b2'\]"):
            evaluate(tmp_path / "run", tiles=sets[name].folder)
    evaluate(tmp_path / "run", tiles=sets["same"].folder)


def test_a_derived_tile_set_keeps_its_indices(tmp_path: Path) -> None:
    whole = prepared(tmp_path, written(tmp_path, *crops(2, "uint8")), "nd=(b2-b1)/(b2+b1)")
    part = TileSet.open(write_derived_set(whole, whole.tiles[::2], tmp_path / "part"))
    assert part.meta.indices == whole.meta.indices
    assert len(part.meta.mean) == 3
    assert part.meta.mean != whole.meta.mean


@pytest.mark.parametrize("file", [CARD, "../tiles/tileset.json"])
def test_a_malicious_formula_is_not_evaluated(chain: SimpleNamespace, tmp_path: Path, file: str) -> None:
    shutil.copytree(chain.folder / "run", tmp_path / "run")
    shutil.copytree(chain.folder / "tiles", tmp_path / "tiles")
    path = tmp_path / "run" / file
    for planted in ("open(b1)", f"b{chain.bands + 1}"):
        content = json.loads(path.read_text())
        content["indices"][0]["formula"] = planted
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=re.escape(planted)):
            read_card(tmp_path / "run")
            TileSet.open(tmp_path / "tiles")


def test_runs_with_other_indices_are_not_averaged(chain: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(chain.folder / "run", tmp_path / "run")
    replace(chain.card, indices=(Index("nd", "b1 * 2"),)).write(tmp_path / "run")
    with pytest.raises(InputError, match=r"indices b1 \* 2\b"):
        predict((chain.folder / "run", tmp_path / "run"), (chain.plain,), tmp_path / "map.tif")


def test_a_raster_needs_the_bands_without_the_index(chain: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"\b{chain.bands + 1} bands.*\b{chain.bands}\b"):
        predict(chain.folder / "run", (chain.explicit,), tmp_path / "map.tif")
    given = tuple(range(1, chain.bands + 2))
    with pytest.raises(InputError, match=rf"--bands .*\b{chain.bands + 1} bands.*\b{chain.bands}\b"):
        predict(chain.folder / "run", (chain.plain,), tmp_path / "map.tif", PredictConfig(bands=given))


# ----------------------------------------------------------------------------------------------------- how it is scaled


@pytest.mark.parametrize(("bands", "scale", "fits"), [(3, 255.0, True), (3, None, False), (5, 255.0, False)])
def test_a_pretrained_scaling_is_for_the_bands_and_the_data_s_for_indices(
    tmp_path: Path, bands: int, scale: float | None, fits: bool
) -> None:
    meta = prepared(tmp_path, written(tmp_path, *crops(bands, "uint8")), "nd=(b3-b1)/(b3+b1)").meta
    meta = replace(meta, scale=scale)
    trained = TinyNetwork()
    trained.input_scaling = InputScaling((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    found = scaling_of(meta, trained, "auto")
    if fits:
        assert found.mean == pytest.approx((127.5, 102, 76.5, meta.mean[3]))
        assert found.std == pytest.approx((51, 51, 51, meta.std[3]))
        assert scaling_of(meta, trained, "weights") == found
    else:
        assert found == Scaling(meta.mean, meta.std)
    assert scaling_of(meta, trained, "data") == Scaling(meta.mean, meta.std)


# ----------------------------------------------------------------------------------- every way, few bands and many


@pytest.mark.parametrize(
    ("bands", "dtype"),
    [(1, "uint16"), (2, "uint8"), (20, "float32")],
)
def test_every_command_accepts_1_to_20_bands(tmp_path: Path, bands: int, dtype: str) -> None:
    scene = written(tmp_path, *crops(bands, dtype))
    tiles = prepared(tmp_path, scene, f"nd={formula(bands)}")
    assert audit(tiles.folder).held_out
    run = train(tiles.folder, tmp_path / "run", TINY).run
    assert evaluate(run).lines()
    assert review(run, tmp_path / "review").lines()
    predict(run, (scene,), tmp_path / "map.tif", replace(MAPPED, applicability=True))
    sample(tmp_path / "map.tif", tmp_path / "points.gpkg", SampleConfig(points=20, min_points=2))
    page = report(run).path.read_text(encoding="utf-8")
    assert f"nd = {formula(bands)}" in page


# ------------------------------------------------------------------------------------------------------------ real data

SCENES = ("6010_1_2", "6010_4_4", "6060_2_3", "6110_1_2", "6160_2_1", "6170_2_4")
MOISTURE = "moisture=(b1-b3)/(b1+b3)"
"""The bands are WorldView-3's of the short-wave infrared: water in leaves takes more of the third, 1.66 micrometres,
than of the first, 1.21."""


@pytest.fixture(scope="module")
def dstl(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Some of DSTL's eight-band scenes with trees as labels, and a run on them with an index."""
    folder, real = tmp_path_factory.mktemp("dstl"), shared / "data" / "dstl"
    for name in ("train_wkt.csv.gz", "grid_sizes.csv"):
        (folder / name).symlink_to(real / name)
    for name in SCENES:
        (folder / "sixteen_band").mkdir(exist_ok=True)
        (folder / "sixteen_band" / f"{name}_A.tif").symlink_to(real / "sixteen_band" / f"{name}_A.tif")
    config = PrepareConfig(tile_px=64, overlap=0.0, index=(MOISTURE, "slope=(b4-b6)/(b4+b6)"))
    tiles = prepare(DstlSource(folder, (5,)), folder / "tiles", config)
    train(tiles.folder, folder / "run", TINY)
    return SimpleNamespace(folder=folder, tiles=tiles, run=folder / "run", scene=real / "sixteen_band")


def test_trees_have_a_higher_water_index_than_their_surroundings(dstl: SimpleNamespace) -> None:
    meta = dstl.tiles.meta
    assert (meta.bands, meta.dtype, meta.band_names[-2:]) == (8, "uint16", ("moisture", "slope"))
    samples = dstl.tiles.samples("train")
    pairs = [samples[i] for i in range(len(samples))]
    moist, label = np.concatenate([image[8] for image, _ in pairs]), np.concatenate([label for _, label in pairs])
    assert ((moist >= -1) & (moist <= 1)).all()
    assert moist[label == 1].mean() > moist[label == 0].mean() + 0.01
    image = pairs[0][0].astype(float)
    np.testing.assert_allclose(image[8], (image[0] - image[2]) / (image[0] + image[2]), rtol=1e-6)


def test_real_scenes_from_scores_to_map(dstl: SimpleNamespace, tmp_path: Path) -> None:
    run, name = dstl.run, "6010_1_2"
    assert read_card(run).scores
    assert evaluate(run, "val").lines()
    assert audit(dstl.tiles.folder).lines()
    assert review(run, tmp_path / "review").lines()
    path = dstl.scene / f"{name}_A.tif"
    predict(run, (path,), tmp_path / "map.tif", MAPPED)
    pixels = read(path)
    assert (read(tmp_path / "map.tif")[0] != 255).all()
    card: ModelCard = read_card(run)
    made = append_indices(pixels, np.ones(pixels.shape[1:], bool), card.indices)
    explicit = write_raster(tmp_path / "explicit.tif", made)
    twin = shutil.copytree(run, tmp_path / "twin")
    replace(card, indices=(), dtype="float32").write(twin)
    predict(twin, (explicit,), tmp_path / "twin" / "map.tif", MAPPED)
    assert_same_map(tmp_path, tmp_path / "twin")


def test_the_command_line_takes_several_indices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = str(written(tmp_path, *crops(2, "uint8")))
    settings = ["--tile-px", "32", "--split", "block", "--buffer-px", "0", "--block-px", "32"]
    command = ["prepare", "vector", scene, "--labels", str(tmp_path / "crops.gpkg"), *settings, "--out"]
    index = ["--index", "nd=(b2-b1)/(b2+b1)", "--index", "ratio=b2/b1"]
    with pytest.raises(SystemExit) as ended:
        main([*command, str(tmp_path / "tiles"), *index])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "index nd: (b2 - b1) / (b2 + b1), mean " in printed
    assert "index ratio: b2 / b1, mean " in printed
    with pytest.raises(SystemExit, match=r"geograft: --index 'nd=\(b2-b9\)/b1': b9 .*\bb1 "):
        main([*command, str(tmp_path / "other"), "--index", "nd=(b2-b9)/b1"])
