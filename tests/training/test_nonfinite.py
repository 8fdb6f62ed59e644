from geograft.dataset.tileset import Samples, Tile
from geograft.geo.grid import Window
from geograft.training.step import NamedTiles, nonfinite_message, tile_name
from tests.support.training import TinyNetwork


def test_a_tile_is_named_by_its_scene_and_window() -> None:
    samples = Samples([Tile("orchard", Window(16, 32, 8, 4), "train")], [()], {})
    assert isinstance(samples, NamedTiles)
    assert tile_name(samples, 0) == "orchard, rows 16 to 23, columns 32 to 35"
    assert tile_name([], 7) == "tile 7"


def test_the_message_names_up_to_three_tiles_unless_all_are_affected() -> None:
    names = [f"scene {number}" for number in range(5)]
    assert "scene 0; scene 1; scene 2 and 2 more." in nonfinite_message(TinyNetwork(), names, 8)
    assert "scene 0." in nonfinite_message(TinyNetwork(), names[:1], 1)
    everything, nothing = (nonfinite_message(TinyNetwork(), each, 5) for each in (names, []))
    assert "scene" not in everything
    assert "extreme pixel values" in everything
    assert "clip_norm" in nothing
