"""Scenes of one file per band, from labels to maps: the same names and the same map whatever the layout."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
from numpy import ndarray
from shapely import box

from geograft.card import read_card
from geograft.cli import main
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.commands.project import project
from geograft.commands.serve import served_subject
from geograft.commands.stac import find_assets
from geograft.commands.suggest import suggest
from geograft.commands.train import train
from geograft.commands.units import suggest_units
from geograft.config import PredictConfig, PrepareConfig, Recipe, StacConfig, SuggestConfig
from geograft.config.recipes import AreaConfig, CopiedImage, ImageConfig, read_project
from geograft.dataset.sources import VectorSource
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.scene_image import open_image, read_info
from geograft.geo.scene import BandChoice
from geograft.server.layers import layers_of
from tests.support.rasters import write_raster
from tests.support.scenes import (
    CORNER,
    UTM32,
    reflectances,
    write_band,
    write_safe,
    write_stac_item,
    zip_folder,
)
from tests.support.web_server import serve_web

NAMES = ("red", "nir", "swir16")
EDGE = 192
TILES = PrepareConfig(tile_px=32, overlap=0, split="block", block_px=32, buffer_px=0, bands=NAMES, val=0.2, test=0.2)
TINY = Recipe().with_settings(model={"architecture": "unet"}, train={"epochs": 1, "augment": "none", "workers": 0})
MAPPED = PredictConfig(probabilities="float16", backend="torch", device="cpu")


def run_command(*arguments: str) -> object:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    return stopped.value.code


def scl_of() -> ndarray:
    return np.random.default_rng(5).integers(1, 12, (EDGE // 2, EDGE // 2), dtype=np.uint8)


def band_list(folder: Path, bands: dict[str, ndarray], sizes: dict[str, int]) -> Path:
    """Write bands as files, and return the list of them."""
    files = {name: write_band(folder / f"{name}.tif", bands[name], size, nodata=0) for name, size in sizes.items()}
    return Path(",".join(f"{name}={path}" for name, path in files.items()))


def labels(folder: Path) -> Path:
    """Write polygons over the tile: columns of squares."""
    x, y = CORNER
    squares = [
        box(x + col, y - row - 60, x + col + 60, y - row)
        for col in range(0, EDGE * 10, 120)
        for row in range(0, EDGE * 10, 120)
    ]
    geopandas.GeoDataFrame(geometry=squares, crs=UTM32).to_file(folder / "labels.gpkg")
    return folder / "labels.gpkg"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run trained on band files, and the same pixels in other layouts."""
    folder = tmp_path_factory.mktemp("scenes")
    truth, scl = reflectances(EDGE), scl_of()
    listed = band_list(folder / "files", truth, {"B11": 20, "B08": 10, "B04": 10, "B02": 10})
    tiles = prepare(VectorSource((listed,), labels(folder)), folder / "tiles", TILES)
    train(folder / "tiles", folder / "run", TINY)
    predict(folder / "run", (listed,), folder / "map.tif", MAPPED)
    return SimpleNamespace(folder=folder, truth=truth, scl=scl, listed=listed, tiles=tiles)


def layouts(chain: SimpleNamespace, folder: Path) -> dict[str, Path]:
    safe = write_safe(folder / "safe", chain.truth, chain.scl)
    return {
        "safe": safe,
        "zip": zip_folder(safe, folder / "product.zip"),
        "stac": write_stac_item(folder / "stac", chain.truth, chain.scl),
    }


def read(path: Path) -> ndarray:
    with rasterio.open(path) as raster:
        pixels: ndarray = raster.read()
    return pixels


def test_the_card_keeps_the_names(chain: SimpleNamespace) -> None:
    card = read_card(chain.folder / "run")
    assert (card.band_names, card.dtype) == (NAMES, "uint16")
    assert card.resolution_m == pytest.approx(10, rel=1e-3)


def test_a_run_of_files_gives_the_same_map_of_every_layout(chain: SimpleNamespace, tmp_path: Path) -> None:
    expected = {what: read(chain.folder / f"map{what}.tif") for what in ("", ".probabilities")}
    assert len(np.unique(expected[".probabilities"])) > 50
    for name, place in layouts(chain, tmp_path).items():
        found = predict(chain.folder / "run", (place,), tmp_path / f"{name}.tif", MAPPED)
        assert found.notes == ()
        for what, pixels in expected.items():
            assert read(tmp_path / f"{name}{what}.tif").tobytes() == pixels.tobytes(), name
    with rasterio.open(tmp_path / "safe.tif") as raster:
        assert raster.tags()["ACQUISITION_DATETIME"] == "2023-07-02T10:25:59.024Z"


def test_tile_sets_of_all_layouts_are_the_same(chain: SimpleNamespace, tmp_path: Path) -> None:
    places = layouts(chain, tmp_path)
    source = VectorSource((places["safe"],), chain.folder / "labels.gpkg")
    tiles = prepare(source, tmp_path / "tiles", TILES)
    assert (tiles.meta.mean, tiles.meta.std) == (chain.tiles.meta.mean, chain.tiles.meta.std)
    assert tiles.meta.source["acquired"].startswith("2023-07-02")
    for split in ("train", "val", "test"):
        ours, theirs = tiles.samples(split), chain.tiles.samples(split)
        assert len(ours) == len(theirs) > 0
        for index in range(len(ours)):
            for one, other in zip(ours[index], theirs[index], strict=True):
                assert (one == other).all()


def test_masked_pixels_are_neither_trained_nor_mapped(chain: SimpleNamespace, tmp_path: Path) -> None:
    masked = np.isin(chain.scl, (3, 8, 9, 10)).repeat(2, axis=0).repeat(2, axis=1)
    place = layouts(chain, tmp_path)["stac"]
    settings = replace(MAPPED, mask=("scl:3,8-10",))
    predict(chain.folder / "run", (place,), tmp_path / "map.tif", settings)
    assert ((read(tmp_path / "map.tif")[0] == 255) == masked).all()
    source = VectorSource((place,), chain.folder / "labels.gpkg")
    tiles = prepare(source, tmp_path / "tiles", replace(TILES, mask=("scl:3,8-10",), min_valid=0))
    assert ((read(tiles.mask_path("S2A_32TLQ"))[0] == 255) == masked).all()
    assert tiles.meta.settings.mask == ("scl:3,8-10",)


def test_a_run_at_20_m_maps_a_scene_with_resample_from_the_bands_themselves(
    chain: SimpleNamespace, tmp_path: Path
) -> None:
    place = layouts(chain, tmp_path)["safe"]
    source = VectorSource((place,), chain.folder / "labels.gpkg")
    coarse = prepare(source, tmp_path / "tiles", replace(TILES, tile_px=16, block_px=16, resolution_m=20))
    assert coarse.meta.resolution_m == pytest.approx(20, rel=1e-3)
    card = replace(read_card(chain.folder / "run"), resolution_m=coarse.meta.resolution_m)
    (tmp_path / "run").mkdir()
    for file in (chain.folder / "run").iterdir():
        if file.is_file():
            (tmp_path / "run" / file.name).write_bytes(file.read_bytes())
    card.write(tmp_path / "run")
    predict(tmp_path / "run", (place,), tmp_path / "map.tif", replace(MAPPED, resample=True))
    copy = coarse.image_path(coarse.meta.scenes[0].name)
    predict(tmp_path / "run", (copy,), tmp_path / "copy.tif", MAPPED)
    assert read(tmp_path / "map.tif").tobytes() == read(tmp_path / "copy.tif").tobytes()
    assert read(tmp_path / "map.tif").shape == (1, EDGE // 2, EDGE // 2)


def test_ordinary_rasters_with_names_in_any_order(chain: SimpleNamespace, tmp_path: Path) -> None:
    info = read_info(chain.listed, BandChoice(("swir16", "red", "blue", "nir")))
    with open_image(info) as image:
        pixels, _ = image.read(info.grid.window)
    options = {"transform": info.grid.transform, "crs": UTM32, "nodata": 0}
    one = described(write_raster(tmp_path / "one.tif", pixels, **options), info.band_names)
    two = described(write_raster(tmp_path / "two.tif", pixels[::-1].copy(), **options), info.band_names[::-1])
    source = VectorSource((one, two), chain.folder / "labels.gpkg")
    tiles = prepare(source, tmp_path / "tiles", TILES)
    assert (tiles.meta.band_names, tiles.meta.settings.bands) == (NAMES, ())
    assert tiles.meta.scenes[0].image == "images/one.tif"
    first, second = (read(tiles.image_path(name)) for name in ("one", "two"))
    assert first.tobytes() == second.tobytes() == pixels[[1, 3, 0]].tobytes()
    alone = prepare(VectorSource((two,), chain.folder / "labels.gpkg"), tmp_path / "alone", TILES)
    assert alone.meta.settings.bands == (3, 1, 4)
    assert (alone.meta.band_names, alone.image_path("two")) == (NAMES, two)
    predict(chain.folder / "run", (two,), tmp_path / "map.tif", replace(MAPPED, bands=NAMES))
    assert read(tmp_path / "map.tif").tobytes() == read(chain.folder / "map.tif").tobytes()
    # The halves of the scene, one in each order and one as band files.
    predict(chain.folder / "run", (one, chain.listed), tmp_path / "both.tif", replace(MAPPED, bands=NAMES))
    assert read(tmp_path / "both.tif").tobytes() == read(chain.folder / "map.tif").tobytes()


def described(path: Path, names: tuple[str, ...]) -> Path:
    with rasterio.open(path, "r+") as raster:
        raster.descriptions = names
    return path


def without_tiles(run: Path, copy: Path) -> Path:
    """Copy a run without the path of its tile set, so that no tile counts as labelled."""
    copy.mkdir()
    for name in ("card.json", "model.safetensors"):
        (copy / name).write_bytes((run / name).read_bytes())
    return copy


def test_suggestions_come_from_scenes_too(chain: SimpleNamespace, tmp_path: Path) -> None:
    run = without_tiles(chain.folder / "run", tmp_path / "run")
    place = layouts(chain, tmp_path)["stac"]
    settings = SuggestConfig(tiles=2, first=2, device="cpu", backend="torch", mask=("scl:3",))
    found = suggest(run, (place,), tmp_path / "next.gpkg", settings)
    assert len(geopandas.read_file(tmp_path / "next.gpkg")) == len(found.tiles) == 2
    suggest_units(run, place, tmp_path / "shared", settings)
    assert (tmp_path / "shared" / "suggestions.gpkg").read_bytes() == (tmp_path / "next.gpkg").read_bytes()


def test_the_commands(chain: SimpleNamespace, tmp_path: Path) -> None:
    run, out = str(chain.folder / "run"), str(tmp_path / "map.tif")
    given = ["--backend", "torch", "--device", "cpu"]
    assert run_command("predict", run, "--band-files", str(chain.listed), "--out", out, *given) == 0
    assert read(tmp_path / "map.tif").tobytes() == read(chain.folder / "map.tif").tobytes()
    tiles = ["prepare", "vector", "--band-files", str(chain.listed), "--labels", str(chain.folder / "labels.gpkg")]
    options = ["--tile-px", "32", "--split", "block", "--out", str(tmp_path / "tiles")]
    assert run_command(*tiles, *options, "--bands", "red,nir,swir16") == 0
    assert TileSet.open(tmp_path / "tiles").meta.band_names == NAMES
    assert run_command(*tiles, *options[:-1], str(tmp_path / "other"), "--bands", "red,swir22") not in (0, None)
    assert not (tmp_path / "other").exists()
    assert run_command("predict", run, "--out", str(tmp_path / "none.tif"), *given) not in (0, None)


def test_what_cannot_be_used_is_refused(chain: SimpleNamespace, tmp_path: Path) -> None:
    source = VectorSource((chain.listed,), chain.folder / "labels.gpkg")
    with pytest.raises(SettingError, match="twice"):
        prepare(source, tmp_path / "tiles", replace(TILES, bands=("red", "red")))
    with pytest.raises(InputError, match="SCL"):
        predict(chain.folder / "run", (chain.listed,), tmp_path / "map.tif", replace(MAPPED, mask=("SCL:3",)))
    damaged = write_safe(tmp_path, chain.truth)
    path = next(damaged.rglob("*_B08_10m.jp2"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="B08"):
        predict(chain.folder / "run", (damaged,), tmp_path / "map.tif", MAPPED)
    with pytest.raises(InputError, match="B08"):
        prepare(VectorSource((damaged,), source.labels), tmp_path / "tiles", TILES)
    assert not (tmp_path / "tiles").exists() and not (tmp_path / "map.tif").exists()


def test_a_run_of_files_maps_the_items_of_a_stac_catalogue(chain: SimpleNamespace, tmp_path: Path) -> None:
    """The item names pictures and JPEG 2000 files on other hosts too, which nobody is asked for."""
    path = write_stac_item(tmp_path, chain.truth, chain.scl)
    item = json.loads(path.read_text())
    item["assets"]["red-jp2"] = item["assets"]["red"] | {"href": "s3://elsewhere/B04.jp2"}
    with serve_web() as web:
        for file in (tmp_path / "assets").iterdir():
            web.put(f"s2/assets/{file.name}", file.read_bytes())
        address = web.put("s2/item.json", json.dumps(item).encode())
        (scene,) = find_assets(StacConfig(address))
        assert str(scene) == f"{web.url}/s2/S2A_32TLQ.json"
        predict(chain.folder / "run", (scene,), tmp_path / "map.tif", MAPPED)
        asked = {one.path for one in web.requests}
    assert asked == {f"/s2/{name}" for name in ("item.json", "assets/B04.tif", "assets/B08.tif", "assets/B11.tif")}
    assert read(tmp_path / "map.probabilities.tif").tobytes() == read(chain.folder / "map.probabilities.tif").tobytes()


# ------------------------------------------------------------------------------------------- projects and the browser

CLOUDY = ImageConfig(NAMES, ("scl:3",))


def with_corner_masked() -> ndarray:
    scl = np.full((EDGE // 2, EDGE // 2), 4, np.uint8)
    scl[:30, :30] = 3
    return scl


def test_a_project_of_a_scene_has_its_bands_as_a_raster(chain: SimpleNamespace, tmp_path: Path) -> None:
    safe = write_safe(tmp_path / "safe", chain.truth, with_corner_masked())
    made = project(tmp_path / "new", safe, ["field"], AreaConfig(3, 32), config=CLOUDY)
    settings, _ = read_project(tmp_path / "new")
    copied = CopiedImage(f"images/{safe.stem}.tif", f"../safe/{safe.name}", NAMES, ("scl:3",))
    assert (settings, settings.images, settings.copies) == (made.settings, (copied.image,), (copied,))
    assert (settings.prepare.bands, settings.predict.mask) == ((), ()), "the copy has only what was chosen"
    expected = read_info(safe, BandChoice(NAMES, ("scl:3",)))
    with open_image(expected) as scene, Image.open(tmp_path / "new" / copied.image) as copy:
        assert (copy.info.grid, copy.info.band_names, copy.info.windowed) == (expected.grid, NAMES, True)
        for one, other in zip(scene.read(expected.grid.window), copy.read(expected.grid.window), strict=True):
            assert one.tobytes() == other.tobytes()
        assert not copy.read(Window(0, 0, 60, 60))[1].any()
        assert all(copy.read(area.window)[1].mean() >= 0.9 for area in made.areas)
    predict(chain.folder / "run", (safe,), tmp_path / "safe.tif", replace(MAPPED, mask=("scl:3",)))
    predict(chain.folder / "run", (tmp_path / "new" / copied.image,), tmp_path / "copy.tif", MAPPED)
    assert read(tmp_path / "safe.tif").tobytes() == read(tmp_path / "copy.tif").tobytes()


def test_a_project_of_rasters_keeps_the_chosen_bands_in_its_settings(chain: SimpleNamespace, tmp_path: Path) -> None:
    info = read_info(chain.listed, BandChoice(("swir16", "red", "blue", "nir")))
    with open_image(info) as image:
        pixels, _ = image.read(info.grid.window)
    pixels[2, :60, :60] = 3
    options = {"transform": info.grid.transform, "crs": UTM32, "nodata": 0}
    raster = described(write_raster(tmp_path / "one.tif", pixels, **options), ("swir16", "red", "quality", "nir"))
    made = project(tmp_path / "new", raster, ["field"], AreaConfig(3, 32), config=ImageConfig(NAMES, ("quality:3",)))
    settings, _ = read_project(tmp_path / "new")
    assert (settings.images, settings.copies) == (("../one.tif",), ())
    for table in (settings.prepare, settings.predict, settings.suggest):
        assert (table.bands, table.mask) == (NAMES, ("quality:3",))
    assert not any(area.window.row < 55 and area.window.col < 55 for area in made.areas)
    # Beside a scene, rasters are copied with their chosen bands too.
    mixed = project(tmp_path / "mixed", (raster, chain.listed), ["field"], AreaConfig(3, 32), config=ImageConfig(NAMES))
    copies = [read(tmp_path / "mixed" / name) for name in mixed.settings.images]
    assert copies[0].tobytes() == pixels[[1, 3, 0]].tobytes()
    assert mixed.settings.copies[1].source == str(chain.listed)
    for wrong in (ImageConfig(("red", "swir22")), ImageConfig(mask=("scl:3",))):
        with pytest.raises(InputError, match=r"one\.tif"):
            project(tmp_path / "other", raster, ["field"], AreaConfig(3, 32), config=wrong)
    assert not (tmp_path / "other").exists()


def test_results_of_a_search_become_a_project_and_suggestions(chain: SimpleNamespace, tmp_path: Path) -> None:
    path = write_stac_item(tmp_path, chain.truth, with_corner_masked())
    with serve_web() as web:
        for file in (tmp_path / "assets").iterdir():
            web.put(f"s2/assets/{file.name}", file.read_bytes())
        address = web.put("s2/item.json", path.read_bytes())
        options = ["--classes", "field", "--scoring-areas", "2", "--area-px", "32"]
        search = ["--stac-url", address, "--mask", "scl:3"]
        new = str(tmp_path / "new")
        assert run_command("project", new, *search, "--bands", "red,nir,swir16", *options) == 0
        given = ["--tiles", "2", "--first", "2", "--device", "cpu", "--backend", "torch"]
        run = str(without_tiles(chain.folder / "run", tmp_path / "run"))
        assert run_command("suggest", run, "--out", str(tmp_path / "next.gpkg"), *search, *given) == 0
        assert run_command("suggest", run, "--out", str(tmp_path / "shared"), *search, *given, "--worker") == 0
        assert (tmp_path / "shared/suggestions.gpkg").read_bytes() == (tmp_path / "next.gpkg").read_bytes()
        plain = ["project", str(tmp_path / "plain"), f"{web.url}/s2/assets/B04.tif", *options]
        assert run_command(*plain) == 0
        assert run_command(*plain[:1], str(tmp_path / "none"), "--bbox", "1", "2", "3", "4", *options) not in (0, None)
    settings, _ = read_project(tmp_path / "new")
    assert settings.copies[0].source == f"{web.url}/s2/S2A_32TLQ.json"
    assert set(geopandas.read_file(tmp_path / "next.gpkg")["scene"]) == {"S2A_32TLQ"}
    assert read(tmp_path / "new/images/S2A_32TLQ.tif").shape == (3, EDGE, EDGE)
    assert read(tmp_path / "plain/images/B04.tif").tobytes() == read(tmp_path / "assets/B04.tif").tobytes()


def test_the_browser_shows_a_scene_by_a_copy(
    chain: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.commands.serve.user_cache_path", lambda *_, **__: tmp_path / "cache")
    safe = layouts(chain, tmp_path)["zip"]
    subject = served_subject(chain.folder / "run", (safe, chain.folder / "map.tif"))
    (image,) = (layer for layer in layers_of(subject) if layer.kind == "image")
    assert (image.raster.group, image.raster.info.band_names) == ("product", NAMES)
    with open_image(read_info(safe, BandChoice(NAMES))) as scene:
        expected, _ = scene.read(scene.info.grid.window)
    assert read(image.raster.path).tobytes() == expected.tobytes()
    changed = image.raster.path.stat().st_mtime_ns
    again = served_subject(chain.folder / "run", (safe,))
    assert again.images[0][1].stat().st_mtime_ns == changed
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        served_subject(chain.folder / "run", (tmp_path / "empty",))
