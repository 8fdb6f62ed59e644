"""Places of a run: thresholds and temperature from a few tiles elsewhere; the run itself never changes."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from geograft.card import read_card
from geograft.cli import app
from geograft.commands.calibrate import calibrate, calibrate_place
from geograft.commands.evaluate import evaluate
from geograft.commands.export import export
from geograft.commands.predict import predict
from geograft.commands.train import train
from geograft.config import EvaluateConfig, InferenceConfig, PredictConfig
from geograft.dataset.tileset import TileSet
from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.files import file_digest
from geograft.mapping.places import read_place
from geograft.metrics.calibration import STEPS, choose_threshold, probability_counts
from tests.commands.test_train import SMALL

pytestmark = pytest.mark.usefixtures("only_torch")

AWAY = InferenceConfig(backend="torch", device="cpu")


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "run", SMALL).run


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def digests(run: Path) -> dict[str, str]:
    return {
        file.relative_to(run).as_posix(): file_digest(file)
        for file in run.rglob("*")
        if file.is_file() and not {"places", "exported"} & set(file.relative_to(run).parts)
    }


def read_map(path: Path) -> ndarray:
    with rasterio.open(path) as raster:
        band: ndarray = raster.read(1)
        return band


def test_a_place_never_changes_the_run_and_changes_its_maps(copied: Path, tiles: Path, fields: Path) -> None:
    before, scene, out = digests(copied), fields / "scene.tif", copied.parent
    own = read_map(predict(copied, (scene,), out / "own.tif", PredictConfig(backend="torch")).maps[0].path)
    found = calibrate_place(copied, tiles, "north", ("val",), AWAY)
    assert digests(copied) == before
    card = read_card(copied)
    place = read_place(copied, "north", card)
    assert place == found.place
    assert len(place.used) == len(TileSet.open(tiles).split("val"))
    # The same thresholds at the run's own temperature, by hand.
    moved = replace(place, temperature=card.temperature, thresholds=(0.2,))
    moved.write(copied)
    there, by_hand = (
        read_map(predict(copied, (scene,), out / name, PredictConfig(backend="torch", **settings)).maps[0].path)
        for name, settings in (("there.tif", {"place": "north"}), ("by-hand.tif", {"threshold": (0.2,)}))
    )
    assert np.array_equal(there, by_hand)
    assert not np.array_equal(there, own)
    assert digests(copied) == before


def test_used_tiles_are_not_scored_and_others_are(copied: Path, tiles: Path) -> None:
    calibrate_place(copied, tiles, "north", ("val",), AWAY)
    config = EvaluateConfig(backend="torch", device="cpu", place="north")
    with pytest.raises(SettingError, match="north"):
        evaluate(copied, "val", tiles, copied.parent / "a.json", config=config)
    scores = evaluate(copied, "test", tiles, copied.parent / "b.json", config=config)
    assert scores.card.used_thresholds == read_place(copied, "north", read_card(copied)).thresholds
    calibrate_place(copied, tiles, "north", config=AWAY)
    with pytest.raises(SettingError, match="north"):
        evaluate(copied, "test", tiles, copied.parent / "c.json", config=config)


def test_the_same_tiles_give_the_same_place_as_calibrate(copied: Path, tiles: Path) -> None:
    """On the run's own validation tiles the temperature is the one that calibrate finds, within the limits."""
    before = read_card(copied).temperature
    place = calibrate_place(copied, tiles, "north", ("val",), AWAY).place
    own = calibrate(copied, tiles, AWAY).card
    assert place.temperature == pytest.approx(np.clip(own.temperature, before / 2, 2 * before))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: {},
        lambda content: content | {"temperature": -1},
        lambda content: content | {"thresholds": [2.0]},
        lambda content: content | {"thresholds": [0.5, 0.5]},
        lambda content: content | {"weights": "0" * 64},
        lambda content: content | {"used": []},
        lambda content: content | {"used": [{"image": "a", "row": -5, "col": 0, "size": 32}]},
        lambda content: content | {"more": 1},
    ],
)
def test_edited_places_are_refused(damage: object, copied: Path, tiles: Path) -> None:
    path = calibrate_place(copied, tiles, "north", ("val",), AWAY).place.write(copied)
    path.write_text(json.dumps(damage(json.loads(path.read_bytes()))))  # type: ignore[operator]
    with pytest.raises(InputError, match="north"):
        evaluate(copied, "test", tiles, copied.parent / "a.json", config=EvaluateConfig(place="north"))


def test_unknown_places_and_names_are_refused(copied: Path, tiles: Path, fields: Path) -> None:
    calibrate_place(copied, tiles, "north", ("val",), AWAY)
    with pytest.raises(InputError, match=r"south.*north"):
        predict(copied, (fields / "scene.tif",), copied.parent / "m.tif", PredictConfig(place="south"))
    for name in ("../up", "a/b", ".hidden", "", "x" * 99, "a\0"):
        if name:
            with pytest.raises(SettingError, match="name of a place"):
                calibrate_place(copied, tiles, name, ("val",), AWAY)
            with pytest.raises(GeograftError):
                predict(copied, (fields / "scene.tif",), copied.parent / "m.tif", PredictConfig(place=name))
    with pytest.raises(SettingError, match="--name"):
        calibrate(copied, tiles, InferenceConfig(place="north"))
    assert not list(copied.parent.glob("m.tif*"))


def test_bundles_take_their_places_with_them(copied: Path, tiles: Path, fields: Path) -> None:
    calibrate_place(copied, tiles, "north", ("val",), AWAY)
    bundle = copied.parent / "run.graft"
    export(copied, bundle, "bundle")
    config = PredictConfig(backend="torch", place="north")
    ours, theirs = (
        read_map(predict(each, (fields / "scene.tif",), copied.parent / f"{number}.tif", config).maps[0].path)
        for number, each in enumerate((copied, bundle))
    )
    assert np.array_equal(ours, theirs)
    with pytest.raises(OutputError, match="bundle"):
        calibrate_place(bundle, tiles, "south", ("val",), AWAY)


@pytest.mark.parametrize(
    "words",
    [("--name", "north"), ("--splits", "val"), ("--place-tiles", "TILES", "--objects", "fields")],
)
def test_options_without_effect_are_refused(
    words: tuple[str, ...], copied: Path, tiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tiles) if word == "TILES" else word for word in words]
    with pytest.raises(SettingError, match=words[-2]):
        app(["calibrate", str(copied), *given], result_action="return_value", exit_on_error=False)
    assert not (copied / "places").exists()


def histograms(probabilities: ndarray, labels: ndarray) -> ndarray:
    pairs = zip(probabilities.astype(np.float32), labels, strict=True)
    return np.stack([probability_counts(p, label) for p, label in pairs])


def f1_at(probabilities: ndarray, labels: ndarray, threshold: float) -> float:
    mapped = probabilities.astype(np.float32) >= np.float32(threshold)
    return float(2 * (mapped & labels).sum() / max((mapped.sum() + labels.sum()), 1))


def cases() -> Iterator[tuple[ndarray, ndarray]]:
    rng = np.random.default_rng(0)
    labels = rng.random((4, 400)) < 0.3
    noisy = 1 / (1 + np.exp(-(3 * labels - 3.5 + rng.normal(0, 1, labels.shape))))
    yield noisy, labels
    yield rng.random((4, 400)), labels
    yield noisy, np.zeros_like(labels)


@given(
    case=st.sampled_from(list(cases())),
    own=st.floats(0.01, 0.99),
    limits=st.sampled_from([(0.1, 0.9), (0.001, 0.999), (0.3, 0.4)]),
)
def test_a_threshold_is_within_its_limits_and_no_worse(
    case: tuple[ndarray, ndarray], own: float, limits: tuple[float, float]
) -> None:
    probabilities, labels = case
    choice = choose_threshold(histograms(probabilities, labels), own, *limits)
    if not labels.any():
        assert choice.kept and choice.threshold == own and np.isnan(choice.f1)
        return
    grid = [i / STEPS for i in range(1, STEPS) if limits[0] - 1e-9 <= i / STEPS <= limits[1] + 1e-9]
    best = max(f1_at(probabilities, labels, threshold) for threshold in grid)
    assert limits[0] - 1e-9 <= choice.best <= limits[1] + 1e-9
    assert f1_at(probabilities, labels, choice.best) == pytest.approx(best)
    assert choice.threshold == (own if choice.kept else choice.best)
    assert choice.kept == (choice.certainty < 0.8)
    assert choice.f1 >= choice.f1_before or limits != (0.001, 0.999)


def test_a_threshold_that_one_of_three_tiles_asks_for_is_not_taken() -> None:
    """It is better in the bootstrap samples that have this tile: 1 - (2 / 3)^3 of them."""
    labels = np.tile(np.arange(200) < 100, (3, 1))
    probabilities = np.where(labels, 0.6, 0.1)
    probabilities[:2, 100:110] = 0.45
    probabilities[2, :35] = 0.45
    choice = choose_threshold(histograms(probabilities, labels), 0.5, 0.1, 0.9)
    assert choice.kept and choice.threshold == 0.5
    assert choice.certainty == pytest.approx(1 - (2 / 3) ** 3, abs=0.05)
    probabilities[1] = probabilities[2]
    assert not choose_threshold(histograms(probabilities, labels), 0.5, 0.1, 0.9).kept
