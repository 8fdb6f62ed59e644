from geograft.dataset.tileset import Samples, Tile
from geograft.geo.grid import Window
from geograft.training.step import NamedTiles, nonfinite_message, tile_name
from tests.support.training import TinyNetwork


def test_a_tile_is_named_by_its_scene_and_the_pixels_of_it() -> None:
    samples = Samples([Tile("orchard", Window(16, 32, 8, 4), "train")], [()], {})
    assert isinstance(samples, NamedTiles)
    assert tile_name(samples, 0) == "orchard, rows 16 to 23, columns 32 to 35"
    assert tile_name([], 7) == "tile 7"


def test_the_verdict_names_tiles_but_not_all_of_a_batch() -> None:
    names = [f"scene {number}" for number in range(5)]
    assert "The cause is scene 0; scene 1; scene 2 and 2 more." in nonfinite_message(TinyNetwork(), names, 8)
    assert "The cause is scene 0." in nonfinite_message(TinyNetwork(), names[:1], 1)
    assert "Each tile of its batch" in nonfinite_message(TinyNetwork(), names, 5)
    assert "No tile of its batch" in nonfinite_message(TinyNetwork(), [], 5)
