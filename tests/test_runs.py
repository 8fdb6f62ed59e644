"""Every command that reads a run gives the same result from its bundle, to the bit, and changes neither."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
from affine import Affine
from matplotlib.image import imread

from geograft.bundle import THUMBNAIL, BundleMember, Origin, TrainingData, read_manifest
from geograft.card import CARD, FEATURES_FILE, STATE, TILES_FILE, WEIGHTS, read_card
from geograft.commands.bundle import bundle_run
from geograft.commands.calibrate import CALIBRATION_FILE, calibrate
from geograft.commands.evaluate import evaluate
from geograft.commands.export import export
from geograft.commands.predict import predict
from geograft.commands.report import report
from geograft.commands.review import review
from geograft.commands.suggest import suggest
from geograft.commands.train import train
from geograft.config import PredictConfig, Recipe, SuggestConfig
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError, OutputError
from geograft.geo.rasters.tags import ORIGIN_TAG
from geograft.inference import backends
from geograft.runs import export_cache, is_bundle, read_members, run_location
from tests.support.rasters import TENTH_METRE, textured, write_raster
from tests.support.runs import make_run

pytestmark = pytest.mark.usefixtures("only_torch")

SMALL = Recipe().with_settings(
    model={"architecture": "unet"},
    train={"epochs": 1, "batch_size": 4, "decoder_lr": 3e-3, "device": "cpu", "calibrate": False},
)


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = train(tiles, tmp_path_factory.mktemp("runs") / "fields", SMALL).run
    evaluate(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "fields.graft"
    assert bundle_run(run, path) == ()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def bundle_stays(bundle: Path) -> Iterator[None]:
    before = bundle.read_bytes()
    yield
    assert bundle.read_bytes() == before
    assert list(bundle.parent.iterdir()) == [bundle]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def raster(path: Path) -> tuple[bytes, dict[str, str]]:
    """Return the pixels and the tags of a map, without the digest of its origin: the path of the run is part of it."""
    with rasterio.open(path) as opened:
        tags = {name: value for name, value in opened.tags().items() if name != ORIGIN_TAG}
        return opened.read().tobytes(), tags


def table(path: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_file(path, layer=pyogrio.list_layers(path)[0][0])


def test_a_bundle_has_what_others_need_and_not_what_they_must_not_have(run: Path, bundle: Path, tiles: Path) -> None:
    members = read_members(bundle)
    expected = {CARD, WEIGHTS, FEATURES_FILE, "history.csv", "recipe.toml", "scores-test.json", THUMBNAIL}
    assert set(members) == expected
    assert {STATE, TILES_FILE, "last.safetensors"} <= {path.name for path in run.iterdir()}
    assert {name: members[name] for name in expected - {THUMBNAIL}} == {
        name: (run / name).read_bytes() for name in expected - {THUMBNAIL}
    }
    tile_set = TileSet.open(tiles)
    counts = (len(tile_set.split(split)) for split in ("train", "val", "test"))
    assert read_manifest(bundle).origin == Origin("none", TrainingData(1, *counts))


def test_the_same_run_gives_the_same_bytes(run: Path, bundle: Path, tmp_path: Path) -> None:
    bundle_run(run, tmp_path / "again.graft")
    assert (tmp_path / "again.graft").read_bytes() == bundle.read_bytes()
    assert bundle_run(bundle, tmp_path / "copy.graft") == ()
    assert (tmp_path / "copy.graft").read_bytes() == bundle.read_bytes()


def test_the_thumbnail_shows_a_tile_beside_its_map(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thumbnail.png").write_bytes(BundleMember(bundle, THUMBNAIL).read_bytes())
    picture = imread(tmp_path / "thumbnail.png")
    assert picture.shape[:2] == (32, 32 + 8 + 32)
    assert np.all(picture[:, 32:40] == 1)


def test_without_its_tile_set_a_run_gets_a_bundle_without_thumbnail(run: Path, tmp_path: Path, tiles: Path) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    (moved / TILES_FILE).unlink()
    (note,) = bundle_run(moved, tmp_path / "moved.graft")
    assert "thumbnail" in note
    assert THUMBNAIL not in read_members(tmp_path / "moved.graft")
    assert bundle_run(moved, tmp_path / "known.graft", tiles) == ()
    other = make_run(tmp_path / "other")
    with pytest.raises(InputError, match=str(tiles)):
        bundle_run(other, tmp_path / "other.graft", tiles)


def test_predict(run: Path, bundle: Path, fields: Path, tmp_path: Path) -> None:
    settings = PredictConfig(probabilities="float16", applicability=True, uncertainty=True)
    for name, given in (("folder", run), ("bundle", bundle)):
        predict(given, [fields / "scene.tif"], tmp_path / name / "map.tif", settings)
    names = [f"map{kind}.tif" for kind in ("", ".probabilities", ".uncertainty", ".applicability")]
    assert [raster(tmp_path / "bundle" / n) for n in names] == [raster(tmp_path / "folder" / n) for n in names]


def test_an_ensemble_of_a_folder_and_a_bundle(run: Path, bundle: Path, fields: Path, tmp_path: Path) -> None:
    for name, given in (("folders", [run, run]), ("mixed", [run, bundle])):
        predict(given, [fields / "scene.tif"], tmp_path / f"{name}.tif", PredictConfig())
    assert raster(tmp_path / "mixed.tif") == raster(tmp_path / "folders.tif")


def test_exported_graphs_and_remembered_trials_are_in_the_cache_of_the_user(
    run: Path, bundle: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_installed", lambda name: name == "onnx")
    write_raster(tmp_path / "scene.tif", textured(3, 40, 40))
    for name, given in (("folder", run), ("bundle", bundle), ("again", bundle)):
        predict(given, [tmp_path / "scene.tif"], tmp_path / f"{name}.tif", PredictConfig(backend="onnx"))
    assert raster(tmp_path / "bundle.tif") == raster(tmp_path / "again.tif") == raster(tmp_path / "folder.tif")
    assert export_cache(bundle).is_relative_to(cache)
    assert {path.name for path in export_cache(bundle).iterdir()} <= {path.name for path in export_cache(run).iterdir()}
    assert len(list(export_cache(bundle).iterdir())) == 2


def test_a_map_in_progress_resumes_with_the_same_bundle_only(run: Path, bundle: Path) -> None:
    assert run_location(bundle) != run_location(run)
    assert run_location(Path("hf:user/name")) == "hf:user/name"


def test_evaluate(run: Path, bundle: Path, tiles: Path, tmp_path: Path) -> None:
    for name, given in (("folder", run), ("bundle", bundle)):
        evaluate(given, "test", tiles, tmp_path / f"{name}.json", against=given)
    text = (tmp_path / "bundle.json").read_text()
    assert text.replace(str(bundle), str(run)).replace('"name": "bundle"', '"name": "folder"') == (
        (tmp_path / "folder.json").read_text()
    )
    assert "another tile set" not in text


def test_calibrate(run: Path, bundle: Path, tiles: Path, tmp_path: Path) -> None:
    calibrated = Path(shutil.copytree(run, tmp_path / "calibrated"))
    calibrate(calibrated)
    calibrate(bundle, tiles, out=tmp_path / "calibrated.graft")
    assert read_card(tmp_path / "calibrated.graft") == read_card(calibrated) != read_card(run)
    changed, before = read_members(tmp_path / "calibrated.graft"), read_members(bundle)
    assert changed[CALIBRATION_FILE] == (calibrated / CALIBRATION_FILE).read_bytes()
    assert {name: changed[name] for name in before if name != CARD} == {n: before[n] for n in before if n != CARD}
    with pytest.raises(OutputError, match="--out"):
        calibrate(calibrated, out=tmp_path / "other.graft")


def test_review(run: Path, bundle: Path, tiles: Path, tmp_path: Path) -> None:
    review(run, tmp_path / "folder")
    review(bundle, tmp_path / "bundle", tiles)
    for name in ("errors/scene.tif",):
        assert (tmp_path / "bundle" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    for name in ("worst.gpkg", "suspects.gpkg"):
        assert table(tmp_path / "bundle" / name).equals(table(tmp_path / "folder" / name))


def test_suggest(run: Path, bundle: Path, tiles: Path, tmp_path: Path) -> None:
    settings = SuggestConfig(tiles=3)
    beside = write_raster(tmp_path / "beside.tif", textured(3, 64, 96), TENTH_METRE @ Affine.translation(300, 0))
    for name, given in (("folder", run), ("bundle", bundle)):
        suggest(given, [beside], tmp_path / f"{name}.gpkg", settings, known=None if given == run else tiles)
    assert table(tmp_path / "bundle.gpkg").equals(table(tmp_path / "folder.gpkg"))


def test_report(run: Path, bundle: Path, tiles: Path, tmp_path: Path) -> None:
    report(run, tmp_path / "folder.html")
    report(bundle, tmp_path / "bundle.html", tiles=tiles)
    text = (tmp_path / "bundle.html").read_text()
    assert text.replace(str(bundle), str(run)) == (tmp_path / "folder.html").read_text()
    (note,) = report(bundle, tmp_path / "alone.html").notes
    assert "--tiles" in note


def test_train_start(run: Path, bundle: Path, tiles: Path, tmp_path: Path) -> None:
    starts = {
        name: train(tiles, tmp_path / name, SMALL.with_settings(model={"start": str(given)}))
        for name, given in (("folder", run), ("bundle", bundle))
    }
    ours, theirs = (starts[name].card for name in ("bundle", "folder"))
    assert ours.weights_digest == theirs.weights_digest
    assert ours.weights_from == theirs.weights_from
    assert ours.model == replace(theirs.model, start=str(bundle))


def test_export(run: Path, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    for name, given in (("folder", run), ("bundle", bundle)):
        export(given, tmp_path / f"{name}.onnx")
    assert (tmp_path / "bundle.onnx").read_bytes() == (tmp_path / "folder.onnx").read_bytes()
    export(bundle, tmp_path / "copy.graft", "bundle")
    assert (tmp_path / "copy.graft").read_bytes() == bundle.read_bytes()


@pytest.mark.parametrize("command", [evaluate, calibrate, report])
def test_what_would_write_into_a_bundle_needs_out(bundle: Path, command: object) -> None:
    with pytest.raises(OutputError, match="--out"):
        command(bundle)  # type: ignore[operator]


def test_no_bundle_and_no_run(tmp_path: Path) -> None:
    (tmp_path / "scene.tif").write_bytes(b"II*\0")
    for path in (tmp_path / "scene.tif", tmp_path / "absent.graft", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            read_card(path)
    assert is_bundle(tmp_path / "scene.tif")


@pytest.mark.parametrize("name", ["hf:", "hf:user", "hf:user/name/more", "hf:../name", "hf:user/name@"])
def test_a_wrong_name_on_the_hub_is_refused_before_anything_is_asked(name: str) -> None:
    with pytest.raises(InputError, match="hf:USER/NAME"):
        read_card(Path(name))
