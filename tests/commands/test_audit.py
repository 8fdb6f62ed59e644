"""The audit of splits from their windows: shared pixels, class fractions and divided groups."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter
from shapely import box

import geograft
from geograft.commands.audit import Audit, audit, audit_plan, audit_tile_set, audit_tiles
from geograft.commands.prepare import prepare
from geograft.config import PrepareConfig
from geograft.dataset.leakage import buffer_advice
from geograft.dataset.sources import MaskSource, VectorSource
from geograft.dataset.splits import PlannedTile, SplitScene, article_tiles, plan_tiles
from geograft.dataset.tileset import INDEX, META, Scene, Tile, TileSet, TileSetMeta
from geograft.errors import InputError, OutputError
from geograft.files import write_text
from geograft.geo.grid import Window
from geograft.geo.vectors.writer import write_tiles
from geograft.legend import Legend
from geograft.locks import lock_output
from tests.support.rasters import textured, write_raster

TREES = Legend(("background", "tree"))
DOCS = Path(__file__).parents[2] / "docs" / "audit.md"
YELLOWSTONE = Path(geograft.__file__).parent / "data" / "yellowstone"
ARTICLE = [SplitScene(f"s{i:02}", 3248, 3248, f"s{i:02}") for i in range(23)]


def write_index(
    folder: Path, places: Sequence[SplitScene], planned: Sequence[PlannedTile], settings: PrepareConfig
) -> Path:
    """Write a tile set without images and masks, which the audit does not open."""
    folder.mkdir()
    scenes = tuple(Scene(p.name, f"{p.name}.tif", "", p.height, p.width, 0.5, p.group) for p in places)
    meta = TileSetMeta(
        legend=TREES,
        band_names=("red",),
        dtype="uint8",
        scale=255.0,
        mean=(0.0,),
        std=(1.0,),
        scenes=scenes,
        settings=settings,
        source={},
        fingerprint="",
    )
    write_text(folder / META, TypeAdapter(TileSetMeta).dump_json(meta).decode())
    rows = [(scene, window, split, 1.0, (0.75, 0.25)) for scene, window, split in planned]
    outlines = [box(w.col, -w.stop_row, w.stop_col, -w.row) for _, w, _ in planned]
    write_tiles(folder / INDEX, rows, outlines, TREES.names, None)
    return folder


def cells(found: Audit) -> list[list[str]]:
    """Return the words of every line, as far as two spaces keep them apart."""
    return [re.split(r"\s{2,}", line) for line in found.lines()]


def test_the_articles_split_shares_94_percent_of_its_test_pixels_with_training(tmp_path: Path) -> None:
    settings = PrepareConfig(split="article")
    found = audit_tile_set(
        TileSet.open(write_index(tmp_path / "article", ARTICLE, plan_tiles(ARTICLE, settings), settings))
    )
    assert found.tiles == {"train": 14_812, "val": 1_150}
    assert found.held_out[0].overlap.pixel_fraction == pytest.approx(0.93978, abs=5e-6)
    text = "\n".join(found.lines())
    assert text.startswith("LEAK: 94.0 % of the val pixels also lie in a training tile.")
    assert found.lines()[2] == f"{tmp_path / 'article'}: 15,962 tiles of 23 scenes"
    assert ["train", "14,812"] in cells(found)
    assert ["val", "1,150", "94.0 %", "81.7 %", "3", "0 px"] in cells(found)


@pytest.mark.parametrize("split", ["auto", "scene", "block"])
def test_other_splits_of_the_same_scenes_share_no_pixel(split: str, tmp_path: Path) -> None:
    settings = PrepareConfig(split=split)
    found = audit_tile_set(
        TileSet.open(write_index(tmp_path / "ours", ARTICLE, plan_tiles(ARTICLE, settings), settings))
    )
    assert set(found.tiles) == {"train", "val", "test"}
    assert [held.overlap.pixel_fraction for held in found.held_out] == [0, 0]
    assert [held.overlap.disjoint for held in found.held_out] == [found.tiles["val"], found.tiles["test"]]
    # Structures were not stored, so duplicates are unknown.
    assert found.lines()[0].startswith("CAUTION: no val or test pixel lies in a training tile. ")
    nearest = [32, 32] if split == "block" else [None, None]
    assert [held.gap_px for held in found.held_out] == nearest


def test_a_prepared_tile_set_is_audited_from_its_folder(tmp_path: Path) -> None:
    write_raster(tmp_path / "images" / "field.tif", textured(3, 300, 260))
    mask = np.ones((1, 300, 260), dtype=np.uint8)
    mask[:, ::2] = 2
    write_raster(tmp_path / "masks" / "field.tif", mask)
    source = MaskSource(images=tmp_path / "images", masks=tmp_path / "masks", classes={1: "tree", 2: "other"})
    prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=32, buffer_px=8))
    found = audit(tmp_path / "tiles")
    assert [held.overlap.shared_pixels for held in found.held_out] == [0, 0]
    assert all(held.gap_px is not None and held.gap_px >= 8 for held in found.held_out)
    assert all(shares == pytest.approx((0.5, 0.5), abs=0.02) for shares in found.class_fractions.values())
    assert not found.leaks


def test_the_page_on_audit_shows_what_it_prints(tmp_path: Path) -> None:
    page = DOCS.read_text(encoding="utf-8")
    shown = "\n".join(
        textwrap.indent(line, "    ")
        for line in audit_plan(article_tiles(ARTICLE), ARTICLE, "the article's split").lines()
    )
    assert shown in page
    source = VectorSource(
        images=(YELLOWSTONE / "training.tif",), labels=YELLOWSTONE / "training.gpkg", class_field="class"
    )
    prepare(source, tmp_path / "tiles")
    first, *rest = audit(tmp_path / "tiles").lines()
    shown = "\n".join(
        textwrap.indent(line, "    ") for line in [first, *rest[:1], "tiles: 332 tiles of 1 scene", *rest[2:]]
    )
    assert shown in page


def test_the_advice_on_near_tiles_works(tmp_path: Path) -> None:
    source = VectorSource((YELLOWSTONE / "training.tif",), YELLOWSTONE / "training.gpkg", "class")
    prepare(source, tmp_path / "tiles")
    before = audit(tmp_path / "tiles")
    assert before.verdict == "CAUTION"
    options = dict(re.findall(r"--(\w+)-px (\d+)", before.advice))
    again = PrepareConfig(split="block", buffer_px=int(options["buffer"]), block_px=int(options.get("block", 0)))
    prepare(source, tmp_path / "again", again)
    assert audit(tmp_path / "again").verdict == "OK"


def test_where_no_buffer_fits_another_area_is_advised(tmp_path: Path) -> None:
    places = [SplitScene("a", 300, 300, "a")]
    settings = PrepareConfig(tile_px=64, buffer_px=8)
    tiles = TileSet.open(write_index(tmp_path / "small", places, plan_tiles(places, settings), settings))
    assert "--split block --buffer-px 16" in buffer_advice(tiles, 16)
    assert "another area" in buffer_advice(tiles, 400)


def test_class_fractions_are_weighted_by_labelled_pixels() -> None:
    tiles = [
        Tile("a", Window(0, 0, 10, 10), "train", 1.0, (1.0, 0.0)),
        Tile("a", Window(0, 10, 10, 10), "train", 0.5, (0.0, 1.0)),
        Tile("a", Window(0, 20, 10, 20), "val", 1.0, (0.25, 0.75)),
    ]
    found = audit_tiles(tiles, [SplitScene("a", 10, 40, "a")], "tiles", ("background", "tree"))
    assert found.class_fractions["train"] == pytest.approx((2 / 3, 1 / 3))
    assert found.class_fractions["val"] == pytest.approx((0.25, 0.75))
    assert ["train", "66.7 %", "33.3 %"] in cells(found)


def test_the_same_pixel_in_two_scenes_of_one_group_is_shared() -> None:
    planned: list[PlannedTile] = [("june", Window(0, 0, 8, 8), "train"), ("august", Window(0, 4, 8, 8), "test")]
    apart = audit_plan(
        planned, [SplitScene("june", 8, 12, "june"), SplitScene("august", 8, 12, "august")], "two fields"
    )
    assert not apart.leaks
    assert apart.held_out[0].gap_px is None
    same = audit_plan(
        planned, [SplitScene("june", 8, 12, "field"), SplitScene("august", 8, 12, "field")], "one field twice"
    )
    assert same.held_out[0].overlap.pixel_fraction == 0.5
    assert same.leaks


def test_a_divided_group_of_scenes_of_different_sizes_is_named() -> None:
    planned: list[PlannedTile] = [("june", Window(0, 0, 8, 8), "train"), ("august", Window(0, 0, 8, 8), "val")]
    places = [SplitScene("june", 8, 8, "field"), SplitScene("august", 9, 8, "field")]
    found = audit_plan(planned, places, "one field twice")
    assert found.divided_groups == ("field",)
    assert found.leaks
    assert "Groups on both sides of the split: field" in found.lines()
    together: list[PlannedTile] = [("june", Window(0, 0, 8, 8), "val"), ("august", Window(0, 0, 8, 8), "val")]
    assert audit_plan(together, places, "one field twice").divided_groups == ()


def test_many_divided_groups_are_counted_not_listed() -> None:
    places = [SplitScene(f"{date}{i}", 8 + (date == "may"), 8, f"g{i}") for i in range(9) for date in ("may", "june")]
    planned: list[PlannedTile] = [(p.name, Window(0, 0, 8, 8), "train" if "may" in p.name else "val") for p in places]
    (line,) = [line for line in audit_plan(planned, places, "x").lines() if "g0, g1, g2, g3, g4" in line]
    assert "4 more" in line
    assert "g5" not in line


def test_a_tile_set_without_training_tiles_cannot_leak() -> None:
    planned = plan_tiles([SplitScene("a", 500, 500, "a")], PrepareConfig(val=0, test=1))
    found = audit_plan(planned, [SplitScene("a", 500, 500, "a")], "elsewhere")
    assert not found.leaks
    assert found.lines()[0] == found.conclusion
    assert "train" not in found.tiles
    assert found.verdict == "OK"


def test_a_small_leak_is_never_rounded_to_zero() -> None:
    planned: list[PlannedTile] = [("a", Window(0, 0, 100, 100), "val"), ("a", Window(99, 99, 100, 100), "train")]
    found = audit_plan(planned, [SplitScene("a", 200, 200, "a")], "a corner")
    assert found.leaks
    assert "<0.1 % of the val pixels" in found.conclusion


def test_a_folder_that_is_no_tile_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        audit(tmp_path)


def test_a_figure_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    source = VectorSource((YELLOWSTONE / "training.tif",), YELLOWSTONE / "training.gpkg", "class")
    prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=512, buffer_px=0))
    with lock_output(tmp_path / "near.png"), pytest.raises(OutputError, match=r"near\.png"):
        audit(tmp_path / "tiles", tmp_path / "near.png")
