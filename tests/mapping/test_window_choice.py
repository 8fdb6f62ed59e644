"""The windows of a new run are the fastest that lose no more IoU on validation tiles than is allowed."""

from collections.abc import Sequence
from pathlib import Path

import pytest

import geograft.mapping.window_choice as choice
from geograft.card import ModelCard, read_card
from geograft.dataset.tileset import TileSet
from geograft.mapping.window_choice import TOLERANCE, choose_window, window_candidates
from tests.support.runs import TREES, PixelwisePredictor, make_run


@pytest.mark.parametrize("tile_px", [16, 128, 320, 500, 640, 1000, 4096])
def test_candidates_are_no_smaller_than_tiles_and_end_with_tiles_at_half_overlap(tile_px: int) -> None:
    candidates = window_candidates(tile_px)
    sizes = [size for size, _ in candidates]
    assert sizes == sorted(sizes, reverse=True) and min(sizes) == tile_px
    assert candidates[-1] == (tile_px, tile_px // 2)
    assert all(0 <= overlap <= size // 2 for size, overlap in candidates)


@pytest.mark.parametrize(
    ("ious", "chosen"),
    [
        ((0.6, 0.6, 0.6), 0),
        ((0.6 - TOLERANCE / 2, 0.6, 0.6), 0),
        ((0.6 - 2 * TOLERANCE, 0.6 - TOLERANCE / 2, 0.6), 1),
        ((0.5, 0.5, 0.6), 2),
        ((0.7, 0.5, 0.6), 0),
        ((float("nan"),) * 3, 0),
        ((float("nan"), 0.5, 0.5), 1),
    ],
)
def test_the_fastest_windows_within_the_tolerance_are_chosen(
    ious: Sequence[float], chosen: int, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, measured = read_card(make_run(tmp_path / "run", TREES, tile_px=32)), iter(ious)
    monkeypatch.setattr(choice, "_iou", lambda *_: next(measured))
    found = choose_window(tmp_path / "run", card, TileSet.open(tiles), "cpu")
    assert found.window == window_candidates(32)[chosen]


def test_every_window_gives_a_pixelwise_network_the_same_iou(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the largest ones are chosen; and the IoU is that of all validation pixels."""
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)
    run, tile_set, found = make_run(tmp_path / "run", TREES, tile_px=32), TileSet.open(tiles), []
    measure = choice._iou

    def remembering(*arguments: object) -> float:
        found.append(measure(*arguments))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(choice, "_iou", remembering)
    card: ModelCard = choose_window(run, read_card(run), tile_set, "cpu")
    assert len(found) == 3 and found[0] > 0.9
    assert found == [found[0]] * 3
    assert card.window == window_candidates(32)[0]
