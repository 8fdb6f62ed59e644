"""The scores of a run are those of its maps: `evaluate` counts the pixels that `predict` writes with the same settings.

Labels and maps are compared here by scikit-learn, from the files.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import rasterio
import sklearn.metrics
import torch
from affine import Affine
from numpy import ndarray
from torch import Tensor, nn

from geograft.card import TILES_FILE, WEIGHTS, ModelCard, read_card
from geograft.commands.calibrate import calibrate
from geograft.commands.evaluate import Evaluation, evaluate
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.config import EvaluateConfig, InferenceConfig, ModelConfig, PredictConfig, PrepareConfig
from geograft.dataset.sources import MaskSource
from geograft.dataset.tileset import Split, TileSet
from geograft.files import write_json
from geograft.training.checkpoint import save_weights
from tests.support.rasters import TENTH_METRE, write_raster
from tests.support.training import TinyNetwork

TILE = 32
Kind = Literal["binary", "exclusive", "overlapping"]
CLASSES: dict[Kind, dict[int, str]] = {
    "binary": {1: "field", 0: "other"},
    "exclusive": {0: "water", 1: "grass", 2: "trees"},
    "overlapping": {1: "crops", 2: "trees"},
}
BLOCKS = PrepareConfig(tile_px=TILE, overlap=0.0, split="block", block_px=2 * TILE, buffer_px=0, val=0.2, test=0.3)
SCENES = replace(BLOCKS, split="scene", block_px=0, val=0.25, test=0.5)


@dataclass(frozen=True)
class Case:
    """A tile set, runs on it, and the settings of evaluate and predict."""

    kind: Kind = "binary"
    place: PrepareConfig = BLOCKS
    split: Split = "test"
    runs: tuple[dict[str, Any], ...] = ({},)
    """Changes to the card of each run."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of InferenceConfig."""
    nodata: bool = False
    calibrated: bool = False


TWO_RUNS = ({"threshold": 0.4}, {"threshold": 0.7, "temperature": 1.6, "std": (20.0, 40.0, 60.0, 80.0)})
CASES = {
    **{f"{kind}, blocks": Case(kind) for kind in CLASSES},
    **{f"{kind}, scenes": Case(kind, SCENES) for kind in CLASSES},
    "ensemble": Case(runs=TWO_RUNS),
    "ensemble of overlapping classes, TTA": Case(
        "overlapping", runs=({"thresholds": (0.3, 0.6)}, {"temperature": 0.5}), settings={"tta": 2}
    ),
    "TTA 2": Case("exclusive", settings={"tta": 2}),
    "TTA 4 of scenes": Case(place=SCENES, settings={"tta": 4}),
    "window": Case(settings={"window_px": 48}),
    "window larger than a tile, small overlap": Case("exclusive", settings={"window_px": 80, "overlap": 0.1}),
    "window smaller than a tile": Case(settings={"window_px": 16, "overlap": 0.25, "batch_size": 3}),
    "no overlap": Case("overlapping", settings={"overlap": 0.0}),
    "window of the card": Case(runs=({"window_px": 64, "overlap_px": 20},)),
    "one window per scene": Case(place=SCENES, runs=({"window_px": 256, "overlap_px": 32},)),
    "calibrated": Case(calibrated=True),
    "calibrated overlapping classes": Case("overlapping", calibrated=True),
    "calibrated exclusive classes": Case("exclusive", calibrated=True, settings={"overlap": 0.25}),
    "overlapping tiles": Case(place=replace(BLOCKS, overlap=0.5), split="train"),
    "overlapping tiles of overlapping classes": Case("overlapping", replace(SCENES, overlap=0.3), "train"),
    "nodata": Case(nodata=True),
    "nodata, several classes, scenes": Case("exclusive", SCENES, nodata=True),
    "nodata, overlapping classes": Case("overlapping", nodata=True, settings={"tta": 2}),
    "index": Case(place=replace(BLOCKS, index=("nd=(b2-b1)/(b2+b1-60)",)), nodata=True),
    "bands": Case(place=replace(BLOCKS, bands=(3, 1)), nodata=True),
    "bands and index": Case("exclusive", replace(BLOCKS, bands=(4, 2, 1), index=("nd=(b1-b3)/(b1+b3)",))),
}


def scene_and_label(case: Case, number: int) -> tuple[ndarray, ndarray]:
    """Return an image (4, h, w), and the label (bands, h, w): the classes of blocks of 8 pixels, 255 in a corner."""
    rng = np.random.default_rng(number)
    height, width = 130 + 8 * number, 160 - 16 * number
    count = len(CLASSES[case.kind])
    bands, values = (count, 2) if case.kind == "overlapping" else (1, count)
    coarse = rng.integers(0, values, (bands, height // 8 + 1, width // 8 + 1))
    label = coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width].astype(np.uint8)
    image = rng.normal(90, 25, (4, height, width)) + 40 * np.resize(label, (4, height, width))
    label[:, :20, :30] = 255
    pixels = image.clip(1, 400).astype(np.uint16)
    if case.nodata:
        pixels[:, 40:75, 50:130] = 0
        pixels[:, rng.random((height, width)) < 0.05] = 0
        pixels[0, 100:110, 100:120] = 0  # of one band only
    return pixels, label


def make_tiles(case: Case, folder: Path) -> TileSet:
    """Write scenes and masks, and prepare them."""
    for number in range(4 if case.place.split == "scene" else 1):
        pixels, label = scene_and_label(case, number)
        # Apart from each other: scenes that touch would be one unit of the split.
        place = TENTH_METRE @ Affine.translation(1000 * number, 0)
        write_raster(folder / "images" / f"{number}.tif", pixels, place, nodata=0 if case.nodata else None)
        nodata = 255 if case.kind == "overlapping" else None
        write_raster(folder / "masks" / f"{number}.tif", label, place, nodata=nodata)
    overlapping = case.kind == "overlapping"
    ignore = None if overlapping else 255
    source = MaskSource(folder / "images", folder / "masks", CLASSES[case.kind], ignore, overlapping=overlapping)
    return prepare(source, folder / "tiles", case.place)


class Context(nn.Module):
    """A network whose output depends on all of a window and on the place in it. Classes are likely in bright bands."""

    stride = 8

    def __init__(self, bands: int, outputs: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(bands, 8, 3, padding=1)])
        self.deeper = nn.Conv2d(8, 8, 3, padding=1)
        self.outputs, self.head = outputs, nn.Conv2d(16, outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = torch.sin(3 * self.stages[0](image))
        coarse = torch.sin(8 * self.deeper(nn.functional.avg_pool2d(fine, 8)))
        whole = 4 * fine.mean(dim=(2, 3), keepdim=True)
        coarse = nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear") + whole
        logits: Tensor = 4 * self.head(torch.cat([fine, coarse], dim=1))
        return logits + 2 * image[:, : self.outputs]


class ContextNetwork(TinyNetwork):
    """That network, and what prediction needs of it."""

    def __init__(self, bands: int, outputs: int) -> None:
        super().__init__(bands, outputs)
        self.body = Context(bands, outputs)


def build(_model: ModelConfig, bands: int, outputs: int, pretrained: bool = True) -> ContextNetwork:
    assert not pretrained
    return ContextNetwork(bands, outputs)


def make_run(folder: Path, tiles: TileSet, seed: int, changes: dict[str, Any]) -> Path:
    """Write a run with random weights."""
    meta = tiles.meta
    card = ModelCard(
        "run", ModelConfig(architecture="unet"), "random", meta.legend, meta.band_names, meta.dtype,
        meta.mean, meta.std, TILE, meta.resolution_m, 0.5, 1, indices=meta.indices, data_fingerprint=meta.fingerprint,
    )  # fmt: skip
    folder.mkdir()
    replace(card, **changes).write(folder)
    torch.manual_seed(seed)
    network = ContextNetwork(len(card.band_names), card.legend.outputs)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, parameter[0].numel() ** -0.5)
        network.body.head.bias.zero_()
    save_weights(folder / WEIGHTS, network)
    write_json(folder / TILES_FILE, {"tiles": str(tiles.folder)})
    return folder


def map_of_scene(case: Case, tiles: TileSet, runs: Sequence[Path], scene: str, out: Path) -> ndarray:
    """Return the bands of the map of a whole scene as class indices; 255 without a value."""
    settings = PredictConfig(**asdict(config_of(case)), bands=case.place.bands)
    predict(runs, (tiles.image_path(scene),), out / f"{scene}.tif", settings)
    with rasterio.open(out / f"{scene}.tif") as raster:
        values: ndarray = raster.read()
    legend = tiles.meta.legend
    if legend.overlapping:
        return values
    table = np.full(256, 255, np.uint8)
    table[list(legend.values)] = range(len(legend.names))
    return np.asarray(table[values])


def config_of(case: Case) -> InferenceConfig:
    return InferenceConfig(**{"device": "cpu", "backend": "torch"} | case.settings)


def counts_of_maps(case: Case, tiles: TileSet, runs: Sequence[Path], out: Path) -> ndarray:
    """Return the confusion counts of the maps over the union of the split's tiles, (k, k) or (classes, 2, 2)."""
    names = tiles.meta.legend.names
    by_name = {name: index for index, name in enumerate(names)}
    layers = len(names) if case.kind == "overlapping" else 1
    labels = [0, 1] if case.kind == "overlapping" else list(range(len(names)))
    counts = np.zeros((layers, len(labels), len(labels)), np.int64)
    for scene in sorted({tile.scene for tile in tiles.split(case.split)}):
        pixels, label = scene_and_label(case, int(scene))
        if case.kind != "overlapping":
            table = np.full(256, 255, np.uint8)
            for value, name in CLASSES[case.kind].items():
                table[value] = by_name[name]
            label = table[label]
        mapped = map_of_scene(case, tiles, runs, scene, out)
        used = pixels[[band - 1 for band in case.place.bands]] if case.place.bands else pixels
        valid = used.any(axis=0) if case.nodata else np.ones(pixels.shape[1:], bool)
        np.testing.assert_array_equal(mapped[0] != 255, valid)
        inside = np.zeros_like(valid)
        for tile in tiles.split(case.split):
            if tile.scene == scene:
                inside[tile.window.slices] = True
        for layer in range(layers):
            known = inside & valid & (label[layer] != 255)
            counts[layer] += sklearn.metrics.confusion_matrix(label[layer][known], mapped[layer][known], labels=labels)
    return counts if case.kind == "overlapping" else counts[0]


def score(case: Case, runs: Sequence[Path]) -> Evaluation:
    return evaluate(runs, case.split, config=EvaluateConfig(**asdict(config_of(case))))


@pytest.mark.parametrize("name", CASES)
def test_the_confusion_matrix_is_that_of_the_map(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    monkeypatch.setattr("geograft.inference.torch_networks.build", build)
    # Panels as narrow as a window, so that tiles lie across their borders.
    monkeypatch.setattr("geograft.mapping.windows.PANEL_BYTES", 1)
    tiles = make_tiles(case, tmp_path)
    runs = [make_run(tmp_path / f"run{seed}", tiles, seed, changes) for seed, changes in enumerate(case.runs)]
    if case.calibrated:
        calibrate(runs[0], config=config_of(case))
        card = read_card(runs[0])
        assert card.temperature != 1
        assert case.kind == "exclusive" or 0.5 not in card.output_thresholds
    found = score(case, runs)
    assert (runs[0] / f"scores-{case.split}.json").exists()
    np.testing.assert_array_equal(found.confusion, counts_of_maps(case, tiles, runs, tmp_path / "maps"))
    assert found.confusion.min() > 20, "all classes are labelled and mapped"


def test_windows_and_augmentation_change_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that equal matrices above mean equal predictions."""
    monkeypatch.setattr("geograft.inference.torch_networks.build", build)
    case = Case()
    tiles = make_tiles(case, tmp_path)
    run = make_run(tmp_path / "run", tiles, 0, {})
    changes: tuple[dict[str, Any], ...] = ({}, {"tta": 2}, {"overlap": 0.25}, {"window_px": 48})
    found = {str(score(replace(case, settings=each), (run,)).confusion.tolist()) for each in changes}
    assert len(found) == len(changes)
