"""The rounds of a project: scores that change, and the areas that follow from the labelled random areas."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from geograft.card import CARD
from geograft.dataset.tileset import TileSet
from geograft.geo.coverage import SAMPLE
from geograft.server.layers import Subject
from geograft.server.rounds import ROUNDS, Rounds
from tests.support.rasters import UTM12
from tests.support.serving import PIXELS, client_of, make_project, write_map

PIXEL_M2 = 0.01


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return make_project(tmp_path)


def write_scores(
    folder: Path, iou: float | None, interval: list[float] | None, units: Sequence[Any] = (), kind: str = SAMPLE
) -> None:
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / CARD).touch()
    content = {
        "overall": {"iou": iou},
        "overall_intervals": {"iou": interval},
        "classes": ["other", "trees"],
        "interval": {"unit": kind},
        "per_unit": [{"unit": name, "confusion": counts} for name, counts in units],
    }
    (folder / "run" / "scores-test.json").write_text(json.dumps(content))


def map_again(subject: Subject, codes: ndarray, crs: str | None = UTM12) -> None:
    (_, path), *_ = subject.maps
    write_map(path, codes, crs=crs)
    card = path.parents[1] / "run" / CARD
    os.utime(path, ns=(card.stat().st_mtime_ns + 1,) * 2)


def columns(trees: int) -> ndarray:
    """Codes of a map with trees in its first columns."""
    codes = np.zeros((PIXELS, PIXELS), np.uint8)
    codes[:, :trees] = 250
    return codes


def test_scores_that_change_are_rounds_that_a_new_server_knows(subject: Subject, tmp_path: Path, tiles: Path) -> None:
    rounds = Rounds(subject)
    rounds.update()
    assert rounds.all == []
    (tmp_path / "tiles").symlink_to(tiles)
    write_scores(tmp_path, 0.5, [0.4, 0.6])
    rounds.update()
    before = rounds.all
    rounds.update()
    assert rounds.all == before == Rounds(subject).all
    write_scores(tmp_path, None, None)
    again = Rounds(subject)
    again.update()
    first, second = again.all
    assert (first["round"], first["iou"], first["iou_low"], first["iou_high"]) == (1, 0.5, 0.4, 0.6)
    assert first["tiles"] == len(TileSet.open(tiles).split("train"))
    assert (second["round"], second["iou"], second["iou_low"]) == (2, None, None)
    for damaged in ("", "[]", "{}", '{"overall": 3}', '{"overall": {}, "overall_intervals": {}}', "[" * 10**6):
        (tmp_path / "run" / "scores-test.json").write_text(damaged)
        again.update()
        again.measure()
        assert Rounds(subject).all == [first, second]


@pytest.mark.parametrize("number", ["NaN", "1e999", "1" + 400 * "0"])
def test_a_score_that_is_no_finite_number_is_unknown_and_the_history_is_still_sent(
    subject: Subject, tmp_path: Path, number: str
) -> None:
    content = f'{{"overall": {{"iou": {number}}}, "overall_intervals": {{"iou": [{number}, 0.5]}}}}'
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "scores-test.json").write_text(content)
    rounds = Rounds(subject)
    rounds.update()
    with client_of(subject) as client:
        (found,) = client.get("/api/history").json()
    assert (found["iou"], found["iou_low"], found["iou_high"]) == (None, None, 0.5)
    stored = tmp_path / ROUNDS
    stored.write_text(stored.read_text().replace("0.5", number))
    assert Rounds(subject).all == []


def test_counts_that_are_no_counts_have_no_areas(subject: Subject, tmp_path: Path) -> None:
    write_scores(tmp_path, 0.5, [0.4, 0.6], [("a", [[10**400, 0], [0, 1]])])
    map_again(subject, columns(8))
    rounds = Rounds(subject)
    rounds.update()
    rounds.measure()
    assert [each["areas"] for each in rounds.all] == [()]
    (tmp_path / ROUNDS).write_text("[1]")
    assert Rounds(subject).all == []


def test_the_area_is_estimated_from_random_areas_once_the_map_is_newer_than_the_run(
    subject: Subject, tmp_path: Path
) -> None:
    map_path = subject.maps[0][1]
    # Of what is mapped as trees, 3/4 are trees; of the rest, 1/8.
    units = [("a", [[300, 50], [40, 150]]), ("b", [[400, 50], [60, 150]])]
    write_scores(tmp_path, 0.5, [0.4, 0.6], units)
    os.utime(map_path, ns=((tmp_path / "run" / CARD).stat().st_mtime_ns - 1,) * 2)
    rounds = Rounds(subject)
    rounds.update()
    rounds.measure()
    assert rounds.all[0]["areas"] == ()  # the map is that of an older run
    map_again(subject, columns(16))
    revision = rounds.revision
    rounds.measure()
    assert rounds.revision != revision and Rounds(subject).all == rounds.all
    (trees,) = rounds.all[0]["areas"]
    assert trees["name"] == "trees" and rounds.all[0]["unit"] == "m2"
    assert trees["mapped"] == pytest.approx(16 * PIXELS * PIXEL_M2)
    assert trees["estimate"] == pytest.approx((16 * 3 / 4 + 48 / 8) * PIXELS * PIXEL_M2)
    assert trees["low"] < trees["estimate"] < trees["high"]


@pytest.mark.parametrize("kind", ["block", "scene"])
def test_areas_that_nobody_drew_at_random_estimate_nothing(subject: Subject, tmp_path: Path, kind: str) -> None:
    write_scores(tmp_path, 0.5, None, [("a", [[1, 0], [0, 1]])], kind)
    map_again(subject, columns(16))
    rounds = Rounds(subject)
    rounds.update()
    rounds.measure()
    assert rounds.all[0]["areas"] == ()


def test_a_class_that_no_random_area_shows_has_no_estimate(subject: Subject, tmp_path: Path) -> None:
    write_scores(tmp_path, None, None, [("a", [[10, 0], [2, 0]]), ("b", [[12, 0], [0, 0]])])
    map_again(subject, columns(16))
    with client_of(subject) as client:
        client.app._app.state.service.report_changes()  # type: ignore[attr-defined]
        client.app._app.state.service.rounds.measure()  # type: ignore[attr-defined]
        (found,) = client.get("/api/history").json()
    (trees,) = found["areas"]
    assert trees["estimate"] is None is trees["low"] and trees["mapped"] > 0


def test_without_crs_areas_are_in_pixels_and_a_server_that_is_read_only_stores_nothing(tmp_path: Path) -> None:
    subject = make_project(tmp_path, crs=None)
    write_scores(tmp_path, 0.5, None, [("a", [[300, 50], [40, 150]]), ("b", [[400, 50], [60, 150]])])
    map_again(subject, columns(16), crs=None)
    rounds = Rounds(replace(subject), store=False)
    rounds.update()
    rounds.measure()
    assert rounds.all[0]["unit"] == "px" and rounds.all[0]["areas"][0]["mapped"] == 16 * PIXELS
    assert not (tmp_path / ROUNDS).exists()
