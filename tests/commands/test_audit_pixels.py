"""The audit beyond shared pixels: the same ground under two names, and nearness against how alike near ground is."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from affine import Affine
from matplotlib.image import imread
from numpy import ndarray
from PIL import Image as Picture
from pyproj import Transformer

from geograft.commands.audit import Audit, Held, audit, audit_set, nearness, unlike
from geograft.commands.prepare import prepare
from geograft.commands.train import train
from geograft.config import ModelConfig, PrepareConfig, Recipe, TrainConfig
from geograft.dataset.autocorrelation import Likeness, Variogram, fitted, likeness, sampled_windows
from geograft.dataset.dstl import SAME_GROUND
from geograft.dataset.scenes import Gathered, Source
from geograft.dataset.sources import DstlSource, MaskSource
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError
from geograft.figures.variogram import Curve, variogram_figure
from geograft.geo.coverage import Overlap
from geograft.geo.grid import Window
from tests.support.rasters import TENTH_METRE, UTM12, write_raster

SMALL = PrepareConfig(tile_px=32, overlap=0.0, split="scene", val=0.25, test=0.25)


@dataclass(frozen=True)
class Ungrouped:
    """A source that does not know which scenes show the same ground."""

    source: Source

    def gather(self) -> Gathered:
        gathered = self.source.gather()
        return replace(gathered, scenes=tuple(replace(scene, group=scene.name) for scene in gathered.scenes))


def land(seed: int, side: int = 320, size: float = 6) -> ndarray:
    """Patches of four brightnesses, uint8 (side, side)."""
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), size, mode="wrap")
    return np.digitize(noise, np.quantile(noise, [0.3, 0.6, 0.8])).astype(np.uint8) * 60 + 20


def mask_source(folder: Path, scenes: dict[str, ndarray], places: dict[str, Affine] | None = None) -> MaskSource:
    """Write scenes with the mask of their two brighter patches: GeoTIFFs with a place in UTM 12, or PNGs."""
    for name, pixels in scenes.items():
        for side, content in (("images", pixels), ("masks", np.where(pixels > 120, 1, 2).astype(np.uint8))):
            (folder / side).mkdir(exist_ok=True)
            if places:
                write_raster(folder / side / f"{name}.tif", content[None], places[name])
            else:
                Picture.fromarray(content).save(folder / side / f"{name}.png")
    return MaskSource(folder / "images", folder / "masks", {1: "tree", 2: "other"})


def parted(source: Source, out: Path, twins: tuple[str, str], config: PrepareConfig = SMALL) -> TileSet:
    """Return a tile set of the first seed that holds out one of two scenes and trains on the other."""
    for seed in range(50):
        tiles = prepare(source, out / str(seed), replace(config, seed=seed))
        trains = {tile.scene: tile.split == "train" for tile in tiles.tiles}
        if trains[twins[0]] != trains[twins[1]]:
            return tiles
    raise AssertionError(f"no seed parts {twins}")


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> TileSet:
    """Eight scenes without a place; s7 shows s0 at another date, 64 pixels farther down."""
    folder = tmp_path_factory.mktemp("twice")
    scenes = {f"s{i}": land(i)[:256, :256] for i in range(7)}
    scenes["s7"] = (255 - land(0)[64:, :256] * 0.8).astype(np.uint8)
    return parted(mask_source(folder, scenes), folder / "tiles", ("s0", "s7"))


def test_dstls_pairs_are_named_when_nobody_grouped_them(shared: Path, tmp_path: Path) -> None:
    source = Ungrouped(DstlSource(shared / "data" / "dstl", (1, 5, 6)))
    # A seed that parts both pairs.
    config = PrepareConfig(tile_px=64, overlap=0.0, split="scene", val=0.3, test=0.2, seed=5)
    tiles = prepare(source, tmp_path / "tiles", config)
    found = audit_set(tiles)
    pairs = {frozenset((twin.held, twin.trains)): twin for twin in found.twins}
    assert set(pairs) == {frozenset(pair) for pair in SAME_GROUND}
    assert all(twin.by == "image" and twin.similarity and twin.similarity > 0.65 for twin in found.twins)
    again = {frozenset((twin.held, twin.trains)): twin.held for twin in found.twins}.values()
    val = tiles.split("val")
    share = sum(tile.scene in again for tile in val) / len(val)
    # The pairs overlap but for two cells at an edge.
    assert [held.seen_elsewhere for held in found.held] == pytest.approx([share, 0], abs=0.01)
    assert found.verdict.startswith("Leak: ")
    assert "6140_1_2 with 6110_1_2" in found.verdict
    assert "--groups" in found.verdict
    assert tiles.meta.source["the same ground"].startswith("6110_1_2 and 6140_1_2, 6110_3_1 and 6140_3_1. Name them")


def test_the_amazon_scenes_leak_nothing_and_their_distances_are_geodesic(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "amazon"
    source = MaskSource(folder / "images", folder / "masks", {1: "forest", 2: "other"}, skip_mismatched=True)
    tiles = prepare(source, tmp_path / "tiles")
    found = audit(tmp_path / "tiles", tmp_path / "figure.png")
    assert not found.leaks
    assert (found.unit, found.twins) == ("m", ())
    # The scenes are tens of kilometres apart, and forest edges are some hundred metres long.
    assert all(held.distances.min() > 10_000 for held in found.held)
    assert found.reach is not None
    assert found.reach.resolved
    assert 300 < found.reach.distance < 3000
    assert found.verdict.startswith("No leak: no val or test pixel lies in a training tile. All of them lie farther")
    assert found.likeness is not None
    assert found.likeness.pixels_read == 16 * 512 * 512
    picture = imread(io.BytesIO((tmp_path / "figure.png").read_bytes()))
    assert picture.shape[:2] == (1080, 1640)
    assert likeness(tiles).labels.range == found.likeness.labels.range


def test_a_scene_seen_at_another_date_is_counted_by_the_ground_that_training_shows(twice: TileSet) -> None:
    found = audit_set(twice)
    assert found.leaks
    assert [{twin.held, twin.trains} for twin in found.twins] == [{"s0", "s7"}]
    assert found.twins[0].by == "image"
    split = next(tile.split for tile in twice.tiles if tile.scene == found.twins[0].held)
    shares = {held.split: held.seen_elsewhere for held in found.held}
    area = sum(tile.scene == found.twins[0].held for tile in twice.tiles) / len(twice.split(split))
    # Three quarters of the scene lie on the other; its cells are 4 pixels wide.
    assert shares[split] == pytest.approx(area * 0.75, abs=0.02)
    assert all(share == 0 for other, share in shares.items() if other != split)
    assert "is also seen in a training tile of another scene" in found.verdict
    assert "s7" in found.verdict


def test_the_same_scenes_in_one_group_do_not_leak(tmp_path: Path) -> None:
    scenes = {f"s{i}": land(i)[:256, :256] for i in range(7)} | {"s7": 255 - land(0)[:256, :256]}
    source = replace(mask_source(tmp_path, scenes), groups={"s0": "here", "s7": "here"})
    for split in ("group", "block"):
        found = audit_set(prepare(source, tmp_path / split, replace(SMALL, split=split)))
        assert not found.leaks
        assert found.twins == ()
        assert "the same ground" not in TileSet.open(tmp_path / split).meta.source


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> TileSet:
    """Seven small scenes without edges but for a corner; s6 is a copy of s1."""
    folder = tmp_path_factory.mktemp("copied")
    scenes = {f"s{i}": np.full((64, 64), 40 + 20 * (i % 5), np.uint8) for i in range(7)}
    for pixels in scenes.values():
        pixels[:5, :5] = 200
    return parted(mask_source(folder, scenes), folder / "tiles", ("s1", "s6"))


def test_the_same_file_under_two_names_is_known_even_without_any_edge(copied: TileSet) -> None:
    found = audit_set(copied)
    assert {frozenset((twin.held, twin.trains)) for twin in found.twins} >= {frozenset(("s1", "s6"))}
    assert {twin.by for twin in found.twins} == {"file"}
    assert found.leaks


def test_overlapping_scenes_are_known_by_where_they_lie_in_any_crs(tmp_path: Path) -> None:
    # Seven scenes side by side with a gap of 100 m; the last covers the right half of the first again.
    places = {f"s{i}": Affine(10, 0, 500_000 + i * 2660, 0, -10, 4_979_000) for i in range(7)}
    places["s7"] = Affine(10, 0, 500_000 + 1280, 0, -10, 4_979_000)
    source = mask_source(tmp_path, {name: land(i)[:256, :256] for i, name in enumerate(places)}, places)
    del places["s1"]
    for folder in ("images", "masks"):
        (tmp_path / folder / "s1.tif").unlink()
    tiles = parted(source, tmp_path / "tiles", ("s0", "s7"))
    found = audit_set(tiles)
    assert [(twin.by, {twin.held, twin.trains}) for twin in found.twins] == [("place", {"s0", "s7"})]
    split = next(tile.split for tile in tiles.tiles if tile.scene == found.twins[0].held)
    part = sum(tile.scene == found.twins[0].held for tile in tiles.tiles) / len(tiles.split(split))
    assert {held.split: held.seen_elsewhere for held in found.held}[split] == pytest.approx(part / 2, rel=1e-3)
    assert tiles.meta.source["the same ground"].startswith("s0 and s7. ")
    clear = next(held for held in found.held if held.split != split)
    assert clear.seen_elsewhere == 0


def test_a_scene_in_degrees_lies_on_one_in_metres(tmp_path: Path) -> None:
    to_degrees = Transformer.from_crs(UTM12, "EPSG:4326", always_xy=True)
    left, top = to_degrees.transform(500_000, 4_979_000)
    right, bottom = to_degrees.transform(502_560, 4_976_440)
    places = {f"s{i}": Affine(10, 0, 500_000 + i * 90_000, 0, -10, 4_979_000) for i in range(6)}
    source = mask_source(tmp_path, {name: land(i)[:256, :256] for i, name in enumerate(places)}, places)
    there = Affine((right - left) / 256, 0, left, 0, (bottom - top) / 256, top)
    for folder, pixels in (("images", land(9)[:256, :256]), ("masks", np.where(land(9)[:256, :256] > 120, 1, 2))):
        write_raster(tmp_path / folder / "s9.tif", pixels[None].astype(np.uint8), there, "EPSG:4326")
    found = audit_set(parted(source, tmp_path / "tiles", ("s0", "s9")))
    assert [{twin.held, twin.trains} for twin in found.twins] == [{"s0", "s9"}]
    assert max(held.seen_elsewhere for held in found.held) > 0.3


def test_distances_of_a_block_split_are_its_buffer_in_metres(tmp_path: Path) -> None:
    source = mask_source(tmp_path, {"field": land(1)}, {"field": TENTH_METRE})
    found = audit_set(prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=32, buffer_px=16)))
    assert found.unit == "m"
    for held in found.held:
        # UTM's scale at its central meridian is 0.9996.
        assert held.distances.min() == pytest.approx(1.6, rel=2e-3)
        assert held.gap_px == 16


@pytest.mark.parametrize("size", [5.0, 12.0])
def test_the_reach_of_a_written_scene_is_that_of_its_field(tmp_path: Path, size: float) -> None:
    rng = np.random.default_rng(0)
    field = scipy.ndimage.gaussian_filter(rng.normal(size=(700, 700)), size, mode="wrap")
    pixels = (127 + 35 * field / field.std()).clip(1, 255).astype(np.uint8)
    found = likeness(prepare(mask_source(tmp_path, {"a": pixels}), tmp_path / "tiles", PrepareConfig(tile_px=64)))
    # Noise smoothed by a Gaussian of that size has the variogram 1 - exp(-h^2 / 4 size^2), at 95 % at 3.46 sizes.
    assert found.image.resolved
    assert found.image.range == pytest.approx(3.46 * size, rel=0.2)
    assert found.labels.range == pytest.approx(3.46 * size, rel=0.4)


def test_labels_resemble_themselves_alike_as_shares(tmp_path: Path) -> None:
    whole = mask_source(tmp_path, {"a": land(1)}, {"a": TENTH_METRE})
    tree = (land(1) > 120).astype(np.uint8)[None]
    write_raster(tmp_path / "shares" / "a.tif", np.concatenate([tree, 1 - tree]))
    bands = replace(whole, masks=tmp_path / "shares")
    soft = replace(bands, classes={1: "tree", 0: "other"}, fractions=True)
    both = replace(bands, overlapping=True)
    sources = {"whole": whole, "soft": soft, "both": both}
    found = {
        name: likeness(prepare(source, tmp_path / name, PrepareConfig(tile_px=64))).labels.gamma
        for name, source in sources.items()
    }
    np.testing.assert_array_equal(found["whole"], found["soft"])
    # The two classes differ in the same pixels: their sum is twice their mean.
    np.testing.assert_allclose(found["whole"], 2 * found["both"])


def test_few_windows_are_read_and_they_lie_in_their_scenes(twice: TileSet) -> None:
    windows = sampled_windows(twice)
    assert len(windows) == len(set(windows)) == len({name for name, _ in windows}) == 8
    assert sampled_windows(twice) == windows
    whole = Window(0, 0, 256, 256)
    assert all(window == whole for _, window in windows)


def variogram(reach: float) -> Variogram:
    lag = np.geomspace(1, 200, 30)
    return fitted(lag, 1 - np.exp(-3 * lag / reach), np.full(30, 1e4))


def judged(distances: list[float], image: float, labels: float) -> Audit:
    held = Held("test", Overlap(tiles=len(distances)), 5, np.array(distances, float))
    known = Likeness(variogram(image), variogram(labels), 1_000_000, 3)
    return Audit("x", {"train": 9, "test": len(distances)}, (held,), (), {}, unit="m", pixel=0.5, likeness=known)


def test_the_verdict_says_how_many_tiles_are_too_near_and_what_buffer_would_do() -> None:
    found = judged([10, 10, 10, 50], image=59.9, labels=30)
    assert found.reach is not None
    assert (found.reach.what, found.reach.distance) == ("image", pytest.approx(29.95, rel=1e-3))
    assert (
        "But 75.0 % of the test tiles lie nearer to a training tile than the image resembles itself (30.0 m)"
        in found.verdict
    )
    assert "Use --buffer-px 60 or more" in found.verdict
    assert not found.leaks


def test_the_verdict_is_content_where_tiles_are_far_or_in_scenes_of_their_own() -> None:
    far = judged([40, 50], image=20, labels=70)
    assert "All of them lie farther from training than the labels resemble themselves (35.0 m)" in far.verdict
    alone = judged([np.inf, np.inf], image=20, labels=70)
    assert alone.verdict.endswith("All of them lie in scenes of which no tile trains.")


def test_a_reach_beyond_the_windows_is_said_to_be_at_least_that() -> None:
    found = judged([10, 500], image=20, labels=5000)
    assert (
        "50.0 % of the test tiles lie nearer to a training tile than the labels resemble themselves (at least 100 m)"
        in found.verdict
    )
    assert "labels: beyond 100 m, the longest distance looked at" in "\n".join(found.lines())
    assert nearness(found.held, None, "m", 0.5) == ""
    assert "is not known: it reaches beyond" in judged([500, 500], image=20, labels=5000).verdict


def test_classes_of_other_shares_are_named() -> None:
    assert unlike({"train": (0.5, 0.5), "val": (0.45, 0.55)}, ("a", "b")) == []
    assert unlike({"train": (0.99, 0.01), "test": (0.999, 0.001)}, ("a", "b")) == []
    assert unlike({"train": (0.9, 0.1), "test": (0.7, 0.3)}, ("a", "b")) == [
        "Unlike: b is 10.0 % of train, 30.0 % of test."
    ]
    assert unlike({"test": (1.0,)}, ("a",)) == []


def test_images_that_are_gone_leave_the_rest_of_the_audit(tmp_path: Path) -> None:
    source = mask_source(tmp_path, {f"s{i}": land(i)[:64, :64] for i in range(6)})
    prepare(source, tmp_path / "tiles", SMALL)
    for image in (tmp_path / "tiles" / "images").iterdir():
        image.unlink()
    found = audit(tmp_path / "tiles")
    assert found.likeness is None
    assert "how far the ground resembles itself is not known" in found.notes[0]
    assert found.verdict == "No leak: no val or test pixel lies in a training tile."
    with pytest.raises(InputError, match="does not exist"):
        audit(tmp_path / "tiles", tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_a_tile_set_from_before_says_what_was_not_looked_for(tmp_path: Path) -> None:
    tiles = prepare(mask_source(tmp_path, {f"s{i}": land(i)[:64, :64] for i in range(6)}), tmp_path / "tiles", SMALL)
    (tmp_path / "tiles" / "structure.npy").unlink()
    assert "prepare the tile set again" in audit_set(tiles).notes[0]


def test_training_says_one_line_when_the_same_ground_is_on_both_sides(copied: TileSet, tmp_path: Path) -> None:
    recipe = Recipe(model=ModelConfig(architecture="unet"), train=TrainConfig(epochs=1, workers=0))
    done = train(copied.folder, tmp_path / "run", recipe)
    assert done.notes == (audit_set(copied).verdict,)
    assert done.lines()[0].startswith("Leak: ")


def test_the_figure_takes_what_has_no_model_and_no_distance() -> None:
    lag = np.arange(1.0, 9)
    bare = Curve("labels", lag, np.zeros(8))
    model = Curve("image", lag, lag / 8, np.stack([lag, lag / 8]), 1.0, 7.0)
    far = {"val": np.array([3.0, np.inf]), "test": np.ones(4)}
    pictures = [imread(io.BytesIO(variogram_figure(*shown, "px"))) for shown in (([model, bare], far), ([bare], {}))]
    assert all(picture.shape == pictures[0].shape and picture.std() > 0.01 for picture in pictures)
    assert (pictures[0] != pictures[1]).any()
