"""The head of a report: the overview of a map, the mapped area, who made it, and the size of the headline."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft.commands.compare import compare
from geograft.commands.evaluate import evaluate
from geograft.commands.predict import predict
from geograft.commands.report import report, with_code
from geograft.commands.report.headline import evidence, selection_sentence
from geograft.commands.report.overview import read_map
from geograft.commands.report.sources import read_subject
from geograft.config import PredictConfig, Recipe, Variant
from geograft.dataset.thumbnails import majority
from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image
from geograft.legend import IGNORE
from tests.commands.test_report import Page
from tests.support.rasters import read_labels, write_raster

RECIPE = Recipe(variants=(Variant("slow", train={"decoder_lr": 1e-5}), Variant("quick"))).with_settings(
    model={"architecture": "unet"}, train={"epochs": 1, "batch_size": 8, "decoder_lr": 3e-3, "device": "cpu"}
)
TORCH = PredictConfig(device="cpu", backend="torch")


@pytest.fixture(scope="module")
def comparison(tiles: Path, fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, and a map by each."""
    folder = compare(tiles, RECIPE, tmp_path_factory.mktemp("comparison") / "both").folder
    for name in ("slow", "quick"):
        evaluate(folder / name / "seed0", "test")
        predict(folder / name / "seed0", (fields / "scene.tif",), folder / f"{name}.tif", TORCH)
    return folder


def page_of(folder: Path, out: Path, class_map: Path | None = None) -> Page:
    return Page(report(folder, out, class_map).path.read_text(encoding="utf-8"))


def test_a_map_is_shown_with_its_area_and_the_network_that_made_it(comparison: Path, tmp_path: Path) -> None:
    found = page_of(comparison, tmp_path / "page.html", comparison / "quick.tif")
    mapped = int((read_labels(comparison / "quick.tif", Window(0, 0, 256, 256)) == 1).sum())
    # Pixels of 0.1 m.
    assert f"{mapped / 100:.0f} m²" in found.words
    assert "map" in found.ids
    assert any("256 × 256 px" in text for text in found.text)
    assert [row[0] for row in found.rows if "made the map" in row[0]] == ["quick best made the map"]
    # The picture is as large as the map: 256 x 256 pixels.
    assert any(image.get("width") == image.get("height") == "256" for image in found.all("img"))


def test_a_map_by_another_network_is_said(comparison: Path, tmp_path: Path) -> None:
    (note,) = report(comparison, tmp_path / "page.html", comparison / "slow.tif").notes
    assert "“slow”" in note and "“quick”" in note
    (note,) = report(comparison / "quick" / "seed0", tmp_path / "run.html", comparison / "slow.tif").notes
    assert "slow.tif" in note and "another run" in note


def test_without_a_map_the_mapped_fraction_of_the_scored_tiles_is_given(comparison: Path, tmp_path: Path) -> None:
    run = comparison / "quick" / "seed0"
    scores = json.loads((run / "scores-test.json").read_text())
    mapped = np.array(scores["confusion"])[:, 1].sum() / np.sum(scores["confusion"])
    found = page_of(run, tmp_path / "page.html")
    assert "map" not in found.ids
    assert f"{100 * mapped:.0f} %" in found.words.partition("Mapped area")[2][:40]


def test_a_raster_that_is_no_map_is_refused_and_no_page_is_written(
    comparison: Path, fields: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"scene\.tif"):
        report(comparison, tmp_path / "page.html", fields / "scene.tif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("units", "size"), [(1, "small"), (9, "small"), (10, "medium"), (29, "medium"), (30, "large")])
def test_the_size_of_the_headline_follows_the_number_of_independent_units(
    units: int, size: str, comparison: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(comparison / "quick" / "seed0", tmp_path / "run"))
    edit_json(run / "scores-test.json", lambda scores: scores["interval"].update(units=units))
    found = evidence(read_subject(run))
    assert (found.units, found.unit, found.size) == (units, "block", size)
    (run / "scores-test.json").unlink()
    assert evidence(read_subject(run)).size == "small"


def test_a_best_network_that_is_not_best_on_test_tiles_is_explained(comparison: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(comparison, tmp_path / "both"))
    assert selection_sentence(read_subject(folder)) == ""
    first, second = (folder / name / "seed0" / "scores-test.json" for name in ("slow", "quick"))
    first_text, second_text = first.read_text(), second.read_text()
    first.write_text(second_text)
    second.write_text(first_text)
    sentence = selection_sentence(read_subject(folder))
    assert "“quick” is called best" in sentence and "“slow” has a higher" in sentence


def edit_json(path: Path, change: Callable[[dict[str, dict[str, int]]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_thumbnail_has_the_most_frequent_class_of_each_square(tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(0, 4, (1, 1200, 700), dtype=np.uint8) * 10
    write_raster(tmp_path / "map.tif", classes, nodata=30)
    with Image.open(tmp_path / "map.tif") as image:
        found = majority(image, 1, (0, 10, 20), (240, 140), 5)
    squares = classes[0].reshape(240, 5, 140, 5)
    counts = np.stack([(squares == value).sum(axis=(1, 3)) for value in (0, 10, 20)])
    assert (found == np.where(counts.any(axis=0), counts.argmax(axis=0), IGNORE)).all()


def test_a_map_of_one_class_has_no_area_of_the_other(comparison: Path) -> None:
    overview = read_map(comparison / "quick.tif")
    assert overview.shown_classes == ["fields"]
    assert sum(overview.areas.values()) == pytest.approx(overview.total) == pytest.approx(655.36)
    assert replace(overview, has_crs=False).area_text(1234) == "1,234 px"


@given(st.text())
def test_text_with_code_is_escaped_and_loses_nothing(text: str) -> None:
    shown = str(with_code(text))
    assert "<" not in shown.replace("<code>", "").replace("</code>", "")
    plain = shown.replace("<code>", "").replace("</code>", "")
    for entity, letter in (("&lt;", "<"), ("&gt;", ">"), ("&#34;", '"'), ("&#39;", "'"), ("&amp;", "&")):
        plain = plain.replace(entity, letter)
    assert plain.replace("`", "") == text.replace("`", "")
