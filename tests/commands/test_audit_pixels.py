"""The audit beyond shared pixels: duplicate scenes, and distances compared with spatial autocorrelation."""

import io
import re
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

from geograft.commands.audit import Audit, HeldOutSplit, audit, audit_tile_set, distance_message, imbalance_lines
from geograft.commands.prepare import prepare
from geograft.commands.train import train
from geograft.config import ModelConfig, PrepareConfig, Recipe, TrainConfig
from geograft.dataset.autocorrelation import (
    SpatialAutocorrelation,
    Variogram,
    estimate_autocorrelation,
    fit_variogram,
    sample_windows,
)
from geograft.dataset.dstl import DUPLICATE_SCENES
from geograft.dataset.scenes import LabelledScenes, LabelSource
from geograft.dataset.sources import DstlSource, MaskSource
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError
from geograft.figures.curves import VariogramCurve, variogram_figure
from geograft.geo.coverage import Overlap
from geograft.geo.grid import Window
from tests.support.rasters import TENTH_METRE, UTM12, write_raster

SMALL = PrepareConfig(tile_px=32, overlap=0.0, split="scene", val=0.25, test=0.25)


@dataclass(frozen=True)
class Ungrouped:
    """A source that does not know which scenes show the same ground."""

    source: LabelSource

    def gather(self) -> LabelledScenes:
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


def parted(source: LabelSource, out: Path, twins: tuple[str, str], config: PrepareConfig = SMALL) -> TileSet:
    """Return a tile set of the first seed that holds out one of two scenes and trains on the other."""
    for seed in range(50):
        tiles = prepare(source, out / str(seed), replace(config, seed=seed))
        trains = {tile.scene: tile.split == "train" for tile in tiles.tiles}
        if trains[twins[0]] != trains[twins[1]]:
            return tiles
    raise AssertionError(f"no seed parts {twins}")


def separate(tiles: TileSet, test: str, train: str) -> TileSet:
    """Return a tile set with one scene held out and another trained on, which `prepare` would keep in one split."""
    assert len({tile.split for tile in tiles.tiles if tile.scene in (test, train)}) == 1
    split_of = {test: "test", train: "train"}
    return replace(tiles, tiles=tuple(replace(t, split=split_of.get(t.scene, t.split)) for t in tiles.tiles))


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> TileSet:
    """Eight scenes without a place; s7 shows s0 at another date, 64 pixels farther down."""
    folder = tmp_path_factory.mktemp("twice")
    scenes = {f"s{i}": land(i)[:256, :256] for i in range(7)}
    scenes["s7"] = (255 - land(0)[64:, :256] * 0.8).astype(np.uint8)
    return parted(mask_source(folder, scenes), folder / "tiles", ("s0", "s7"))


def test_ungrouped_duplicates_of_dstl_are_found(shared: Path, tmp_path: Path) -> None:
    source = Ungrouped(DstlSource(shared / "data" / "dstl", (1, 5, 6)))
    # A seed that parts both pairs.
    config = PrepareConfig(tile_px=64, overlap=0.0, split="scene", val=0.3, test=0.2, seed=5)
    tiles = prepare(source, tmp_path / "tiles", config)
    found = audit_tile_set(tiles)
    pairs = {frozenset((twin.held_out, twin.train)): twin for twin in found.duplicates}
    assert set(pairs) == {frozenset(pair) for pair in DUPLICATE_SCENES}
    assert all(twin.evidence == "image" and twin.similarity and twin.similarity > 0.65 for twin in found.duplicates)
    again = {frozenset((twin.held_out, twin.train)): twin.held_out for twin in found.duplicates}.values()
    val = tiles.split("val")
    share = sum(tile.scene in again for tile in val) / len(val)
    # The pairs overlap but for two cells at an edge.
    assert [held.duplicate_fraction for held in found.held_out] == pytest.approx([share, 0], abs=0.01)
    assert found.conclusion.startswith("LEAK: ")
    assert "6140_1_2 with 6110_1_2" in found.conclusion
    assert "--groups" in found.conclusion
    assert tiles.meta.source["duplicate scenes"].startswith("6110_1_2 and 6140_1_2, 6110_3_1 and 6140_3_1.")


def test_the_amazon_scenes_do_not_leak_and_distances_are_in_metres(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "amazon"
    source = MaskSource(folder / "images", folder / "masks", {1: "forest", 2: "other"}, skip_mismatched=True)
    tiles = prepare(source, tmp_path / "tiles")
    found = audit(tmp_path / "tiles", tmp_path / "figure.png")
    assert not found.leaks
    assert (found.unit, found.duplicates) == ("m", ())
    # The scenes are tens of kilometres apart, and forest edges are some hundred metres long.
    assert all(held.distances.min() > 10_000 for held in found.held_out)
    assert found.autocorrelation_range is not None
    assert found.autocorrelation_range.resolved
    assert 300 < found.autocorrelation_range.distance < 3000
    assert found.conclusion.startswith("OK: no val or test pixel lies in a training tile. All ")
    assert "beyond" in found.conclusion
    assert found.autocorrelation is not None
    assert found.autocorrelation.pixels_read == 16 * 512 * 512
    picture = imread(io.BytesIO((tmp_path / "figure.png").read_bytes()))
    assert picture.shape[:2] == (1080, 1640)
    assert estimate_autocorrelation(tiles).labels.range == found.autocorrelation.labels.range


def test_a_scene_of_another_date_counts_by_the_area_shown_in_training(twice: TileSet) -> None:
    found = audit_tile_set(twice)
    assert found.leaks
    assert [{twin.held_out, twin.train} for twin in found.duplicates] == [{"s0", "s7"}]
    assert found.duplicates[0].evidence == "image"
    split = next(tile.split for tile in twice.tiles if tile.scene == found.duplicates[0].held_out)
    shares = {held.split: held.duplicate_fraction for held in found.held_out}
    area = sum(tile.scene == found.duplicates[0].held_out for tile in twice.tiles) / len(twice.split(split))
    # Three quarters of the scene lie on the other; its cells are 4 pixels wide.
    assert shares[split] == pytest.approx(area * 0.75, abs=0.02)
    assert all(share == 0 for other, share in shares.items() if other != split)
    assert f"{100 * shares[split]:.1f} % of the {split} area" in found.conclusion
    assert "s7" in found.conclusion


def test_the_same_scenes_in_one_group_do_not_leak(tmp_path: Path) -> None:
    scenes = {f"s{i}": land(i)[:256, :256] for i in range(7)} | {"s7": 255 - land(0)[:256, :256]}
    source = replace(mask_source(tmp_path, scenes), groups={"s0": "here", "s7": "here"})
    for split in ("group", "block"):
        found = audit_tile_set(prepare(source, tmp_path / split, replace(SMALL, split=split)))
        assert not found.leaks
        assert found.duplicates == ()
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
    found = audit_tile_set(copied)
    assert {frozenset((twin.held_out, twin.train)) for twin in found.duplicates} >= {frozenset(("s1", "s6"))}
    assert {twin.evidence for twin in found.duplicates} == {"file"}
    assert found.leaks


def test_overlapping_scenes_are_found_by_location_in_any_crs(tmp_path: Path) -> None:
    # Seven scenes with gaps of 1 km; the last, on another grid, covers the right half of the first again.
    places = {f"s{i}": Affine(10, 0, 500_000 + i * 3560, 0, -10, 4_979_000) for i in range(7)}
    places["s7"] = Affine(10.05, 0, 500_000 + 1280, 0, -10.05, 4_979_000)
    source = mask_source(tmp_path, {name: land(i)[:256, :256] for i, name in enumerate(places)}, places)
    del places["s1"]
    for folder in ("images", "masks"):
        (tmp_path / folder / "s1.tif").unlink()
    tiles = separate(prepare(source, tmp_path / "tiles", SMALL), test="s0", train="s7")
    found = audit_tile_set(tiles)
    assert [(twin.evidence, {twin.held_out, twin.train}) for twin in found.duplicates] == [("location", {"s0", "s7"})]
    split = next(tile.split for tile in tiles.tiles if tile.scene == found.duplicates[0].held_out)
    part = sum(tile.scene == found.duplicates[0].held_out for tile in tiles.tiles) / len(tiles.split(split))
    assert {held.split: held.duplicate_fraction for held in found.held_out}[split] == pytest.approx(part / 2, rel=0.02)
    clear = next(held for held in found.held_out if held.split != split)
    assert clear.duplicate_fraction == 0


def test_a_scene_in_degrees_lies_on_one_in_metres(tmp_path: Path) -> None:
    to_degrees = Transformer.from_crs(UTM12, "EPSG:4326", always_xy=True)
    left, top = to_degrees.transform(500_000, 4_979_000)
    right, bottom = to_degrees.transform(502_560, 4_976_440)
    places = {f"s{i}": Affine(10, 0, 500_000 + i * 90_000, 0, -10, 4_979_000) for i in range(6)}
    source = mask_source(tmp_path, {name: land(i)[:256, :256] for i, name in enumerate(places)}, places)
    there = Affine((right - left) / 256, 0, left, 0, (bottom - top) / 256, top)
    for folder, pixels in (("images", land(9)[:256, :256]), ("masks", np.where(land(9)[:256, :256] > 120, 1, 2))):
        write_raster(tmp_path / folder / "s9.tif", pixels[None].astype(np.uint8), there, "EPSG:4326")
    found = audit_tile_set(separate(prepare(source, tmp_path / "tiles", SMALL), test="s0", train="s9"))
    assert [{twin.held_out, twin.train} for twin in found.duplicates] == [{"s0", "s9"}]
    assert max(held.duplicate_fraction for held in found.held_out) > 0.3


def test_distances_of_a_block_split_are_its_buffer_in_metres(tmp_path: Path) -> None:
    source = mask_source(tmp_path, {"field": land(1)}, {"field": TENTH_METRE})
    found = audit_tile_set(prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=32, buffer_px=16)))
    assert found.unit == "m"
    for held in found.held_out:
        # UTM's scale at its central meridian is 0.9996.
        assert held.distances.min() == pytest.approx(1.6, rel=2e-3)
        assert held.gap_px == 16


@pytest.mark.parametrize("size", [5.0, 12.0])
def test_the_reach_of_a_written_scene_is_that_of_its_field(tmp_path: Path, size: float) -> None:
    rng = np.random.default_rng(0)
    field = scipy.ndimage.gaussian_filter(rng.normal(size=(700, 700)), size, mode="wrap")
    pixels = (127 + 35 * field / field.std()).clip(1, 255).astype(np.uint8)
    found = estimate_autocorrelation(
        prepare(mask_source(tmp_path, {"a": pixels}), tmp_path / "tiles", PrepareConfig(tile_px=64))
    )
    # Noise smoothed by a Gaussian of that size has the variogram 1 - exp(-h^2 / 4 size^2), at 95 % at 3.46 sizes.
    assert found.image.resolved
    assert found.image.range == pytest.approx(3.46 * size, rel=0.2)
    assert found.labels.range == pytest.approx(3.46 * size, rel=0.4)


def test_fractional_labels_have_the_variogram_of_class_indices(tmp_path: Path) -> None:
    whole = mask_source(tmp_path, {"a": land(1)}, {"a": TENTH_METRE})
    tree = (land(1) > 120).astype(np.uint8)[None]
    write_raster(tmp_path / "shares" / "a.tif", np.concatenate([tree, 1 - tree]))
    bands = replace(whole, masks=tmp_path / "shares")
    soft = replace(bands, classes={1: "tree", 0: "other"}, fractional=True)
    both = replace(bands, overlapping=True)
    sources = {"whole": whole, "soft": soft, "both": both}
    found = {
        name: estimate_autocorrelation(prepare(source, tmp_path / name, PrepareConfig(tile_px=64))).labels.gamma
        for name, source in sources.items()
    }
    np.testing.assert_array_equal(found["whole"], found["soft"])
    # The two classes differ in the same pixels: their sum is twice their mean.
    np.testing.assert_allclose(found["whole"], 2 * found["both"])


def test_few_windows_are_read_and_they_lie_in_their_scenes(twice: TileSet) -> None:
    windows = sample_windows(twice)
    assert len(windows) == len(set(windows)) == len({name for name, _ in windows}) == 8
    assert sample_windows(twice) == windows
    whole = Window(0, 0, 256, 256)
    assert all(window == whole for _, window in windows)


def variogram(range_m: float) -> Variogram:
    lag = np.geomspace(1, 200, 30)
    return fit_variogram(lag, 1 - np.exp(-3 * lag / range_m), np.full(30, 1e4))


def judged(distances: list[float], image: float, labels: float) -> Audit:
    held = HeldOutSplit("test", Overlap(tiles=len(distances)), 5, np.array(distances, float))
    known = SpatialAutocorrelation(variogram(image), variogram(labels), 1_000_000, 3)
    return Audit(
        "x", {"train": 9, "test": len(distances)}, (held,), (), {}, unit="m", pixel_size=0.5, autocorrelation=known
    )


def test_the_conclusion_names_the_tiles_within_the_range_and_the_buffer_needed() -> None:
    found = judged([10, 10, 10, 50], image=59.9, labels=30)
    assert found.autocorrelation_range is not None
    assert (found.autocorrelation_range.variable, found.autocorrelation_range.distance) == (
        "image",
        pytest.approx(29.95, rel=1e-3),
    )
    assert "But 75.0 % of the test tiles lie within" in found.conclusion and "of the image (30.0 m)" in found.conclusion
    assert (found.verdict, found.leaks) == ("CAUTION", False)
    assert found.conclusion.startswith("CAUTION: ")


def test_tiles_beyond_the_range_or_in_other_scenes_give_no_warning() -> None:
    far = judged([40, 50], image=20, labels=70)
    assert far.verdict == "OK"
    assert re.search(r"All .* beyond .* of the labels \(35\.0 m\)", far.conclusion)
    alone = judged([np.inf, np.inf], image=20, labels=70)
    assert alone.conclusion.endswith("No scene has both training and held-out tiles.")


def test_a_range_beyond_the_windows_is_reported_as_a_lower_bound() -> None:
    found = judged([10, 500], image=20, labels=5000)
    assert (
        "But 50.0 % of the test tiles lie within" in found.conclusion
        and "of the labels (at least 100 m)" in found.conclusion
    )
    assert re.search(r"labels: .*100 m, the longest", "\n".join(found.lines()))
    assert distance_message(found.held_out, None, "m", "") == ""
    assert re.search(r"labels is unknown: .*100 m", judged([500, 500], image=20, labels=5000).conclusion)


def test_imbalanced_classes_are_named() -> None:
    assert imbalance_lines({"train": (0.5, 0.5), "val": (0.45, 0.55)}, ("a", "b")) == []
    assert imbalance_lines({"train": (0.99, 0.01), "test": (0.999, 0.001)}, ("a", "b")) == []
    assert imbalance_lines({"train": (0.9, 0.1), "test": (0.7, 0.3)}, ("a", "b")) == [
        "Imbalance: b is 10.0 % of train, 30.0 % of test."
    ]
    assert imbalance_lines({"test": (1.0,)}, ("a",)) == []


def test_missing_images_leave_the_rest_of_the_audit(tmp_path: Path) -> None:
    source = mask_source(tmp_path, {f"s{i}": land(i)[:64, :64] for i in range(6)})
    prepare(source, tmp_path / "tiles", SMALL)
    for image in (tmp_path / "tiles" / "images").iterdir():
        image.unlink()
    found = audit(tmp_path / "tiles")
    assert found.autocorrelation is None
    assert "autocorrelation" in found.notes[0]
    assert ".tif" in found.notes[0]
    assert found.verdict == "CAUTION"
    with pytest.raises(InputError, match=r"\.tif"):
        audit(tmp_path / "tiles", tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_a_tile_set_without_structures_has_a_note(tmp_path: Path) -> None:
    tiles = prepare(mask_source(tmp_path, {f"s{i}": land(i)[:64, :64] for i in range(6)}), tmp_path / "tiles", SMALL)
    (tmp_path / "tiles" / "structure.npy").unlink()
    assert "structure.npy" in audit_tile_set(tiles).notes[0]


def test_training_reports_a_leak_in_one_line(copied: TileSet, tmp_path: Path) -> None:
    recipe = Recipe(model=ModelConfig(architecture="unet"), train=TrainConfig(epochs=1, workers=0))
    done = train(copied.folder, tmp_path / "run", recipe)
    assert done.notes == (audit_tile_set(copied).conclusion,)
    assert done.lines()[0].startswith("LEAK: ")


def test_the_figure_without_model_and_distances() -> None:
    lag = np.arange(1.0, 9)
    bare = VariogramCurve("labels", lag, np.zeros(8))
    model = VariogramCurve("image", lag, lag / 8, np.stack([lag, lag / 8]), 1.0, 7.0)
    far = {"val": np.array([3.0, np.inf]), "test": np.ones(4)}
    pictures = [imread(io.BytesIO(variogram_figure(*shown, "px"))) for shown in (([model, bare], far), ([bare], {}))]
    assert all(picture.shape == pictures[0].shape and picture.std() > 0.01 for picture in pictures)
    assert (pictures[0] != pictures[1]).any()
