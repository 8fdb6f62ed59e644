"""An archive of labelled tiles as features of a frozen encoder, and a small pixel head that trains on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, interpolate

from geograft.commands.demo import LITE0, SCENES
from geograft.commands.prepare import prepare
from geograft.config import PrepareConfig
from geograft.dataset.sources import MaskSource, VectorSource
from geograft.dataset.tileset import SPLITS, Tile, TileSet
from geograft.legend import IGNORE
from geograft.metrics.confusion import confusion_matrix, scores
from geograft.networks.pyramid import build_pyramid

TILE_PX, STRIDE, CELL_PX = 128, 4, 64
ARCHIVE = "features.npz"
MAX_STRIDE = 16
"""Features of larger strides are not used."""
STEPS, PIXELS, LEARNING_RATE, HIDDEN = 200, 1024, 3e-3, 32
BATCH = 32


@dataclass(frozen=True)
class Archive:
    """Features and labels of n tiles. The simulation hides the labels until a strategy asks for them."""

    features: ndarray
    """(n, p, d): the encoder's features of each pixel at a quarter of the resolution, standardised."""
    labels: ndarray
    """(n, t, t) uint8: the class index of every pixel."""
    scenes: ndarray
    """(n,): the index of each tile's scene, or of its part of a scene."""

    @cached_property
    def cell_features(self) -> ndarray:
        """(n, cells, d): the mean features of each cell of a tile."""
        side, cell = TILE_PX // STRIDE, CELL_PX // STRIDE
        shape = (len(self.features), side // cell, cell, side // cell, cell, -1)
        means = self.features.reshape(shape).mean(axis=(2, 4), dtype=np.float32)
        return means.reshape(len(means), -1, means.shape[-1])

    def fractions(self, tiles: ndarray) -> Tensor:
        """Return the fraction of class 1 in each pixel at a quarter of the resolution, (n, p)."""
        side = TILE_PX // STRIDE
        parts = self.labels[tiles].reshape(-1, side, STRIDE, side, STRIDE)
        return torch.from_numpy(parts.mean(axis=(2, 4), dtype=np.float32).reshape(len(tiles), -1))

    def features_at(self, tiles: ndarray) -> Tensor:
        """Return the features of some tiles, (n, p, d)."""
        return torch.from_numpy(self.features[tiles].astype(np.float32, copy=False))


@dataclass(frozen=True)
class ArchiveSource:
    """The images and the encoder of an archive."""

    encoder: str
    weights: str
    prepare_tiles: Callable[[Path], TileSet]
    """Prepares the tile set in a folder."""
    scene_of: Callable[[Tile], str]
    """Returns the name of a tile's scene, or of its part of a scene."""


def forest_source(data: Path, weights: Path) -> ArchiveSource:
    """Return the Amazon scenes, where half of all pixels are forest. `data` holds images/ and masks/."""

    def prepared(folder: Path) -> TileSet:
        source = MaskSource(data / "images", data / "masks", {1: "forest", 2: "other"}, skip_mismatched=True)
        return prepare(source, folder, PrepareConfig(tile_px=TILE_PX, overlap=0.0, split="scene", val=0.2, test=0.0))

    return ArchiveSource("tf_efficientnet_b0", str(weights), prepared, lambda tile: tile.scene)


def crowns_source() -> ArchiveSource:
    """Return the demo's scene, where one pixel in six is tree crown, in parts of four by four tiles."""

    def prepared(folder: Path) -> TileSet:
        source = VectorSource((SCENES / "training.tif",), SCENES / "training.gpkg", class_field="class")
        return prepare(source, folder, PrepareConfig(tile_px=TILE_PX, overlap=0.0, split="scene", val=0.0, test=0.0))

    edge = 4 * TILE_PX
    return ArchiveSource(
        **LITE0, prepare_tiles=prepared, scene_of=lambda tile: f"{tile.window.row // edge} {tile.window.col // edge}"
    )


def write_archive(source: ArchiveSource, folder: Path) -> None:
    """Write the archive to `folder` unless it exists."""
    path, tiles = folder / ARCHIVE, folder / "tiles"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = _encode_tiles(TileSet.open(tiles) if tiles.exists() else source.prepare_tiles(tiles), source)
        np.savez(path, pixels=found.features, labels=found.labels, scenes=found.scenes)


@lru_cache
def read(folder: Path) -> Archive:
    """Return the archive in `folder`, cached per process, and limit torch to one thread."""
    torch.set_num_threads(1)
    with np.load(folder / ARCHIVE, allow_pickle=False) as stored:
        # Converted to float32 once, because every round reads all features.
        return Archive(stored["pixels"].astype(np.float32), stored["labels"], stored["scenes"])


def _encode_tiles(tile_set: TileSet, source: ArchiveSource) -> Archive:
    encoder, origin = build_pyramid(source.encoder, len(tile_set.meta.band_names), source.weights)
    assert origin.scaling is not None
    mean, std = (np.array(values)[:, None, None] * 255 for values in (origin.scaling.mean, origin.scaling.std))
    encoder.eval()
    seen, labels, scenes = [], [], []
    for split in SPLITS:
        samples = tile_set.samples(split)
        for index, tile in enumerate(samples.tiles):
            image, label = samples[index]
            # The head learns fractions of class 1, which are undefined where a label is unknown.
            if (label == IGNORE).any():
                continue
            with torch.inference_mode():
                maps = encoder(torch.from_numpy(((image - mean) / std).astype(np.float32))[None])
            seen.append(
                torch.cat([_quarter(m) for m, s in zip(maps, encoder.strides, strict=True) if s <= MAX_STRIDE], 1)
            )
            labels.append(label)
            scenes.append(source.scene_of(tile))
    table = torch.cat(seen).permute(0, 2, 3, 1).flatten(1, 2).numpy()
    standard = (table - table.mean(axis=(0, 1))) / (table.std(axis=(0, 1)) + 1e-6)
    return Archive(standard.astype(np.float16), np.stack(labels), np.unique(scenes, return_inverse=True)[1])


def _quarter(features: Tensor) -> Tensor:
    """Return a feature map at a quarter of the image's resolution."""
    size = TILE_PX // STRIDE
    if features.shape[2] > size:
        return avg_pool2d(features, features.shape[2] // size)
    return interpolate(features, size=(size, size), mode="bilinear", align_corners=False)


def train_head(archive: Archive, tiles: Sequence[int], seed: int) -> nn.Module:
    """Train a head of two layers on some tiles: 200 steps of 1,024 pixels, about half a second."""
    torch.manual_seed(seed)
    some = np.array(tiles)
    seen, truth = archive.features_at(some).flatten(0, 1), archive.fractions(some).flatten()
    head = nn.Sequential(nn.Linear(seen.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    adam = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    for _ in range(STEPS):
        pixels = torch.randint(len(seen), (PIXELS,))
        loss = binary_cross_entropy_with_logits(head(seen[pixels])[:, 0], truth[pixels])
        adam.zero_grad()
        loss.backward()
        adam.step()
        scheduler.step()
    return head


@torch.inference_mode()
def probabilities(head: nn.Module, archive: Archive, tiles: ndarray) -> ndarray:
    """Return the probability of class 1 at a quarter of the resolution, (n, h, w) float32."""
    side = TILE_PX // STRIDE
    parts = [
        torch.sigmoid(head(archive.features_at(tiles[i : i + BATCH])))[..., 0] for i in range(0, len(tiles), BATCH)
    ]
    return torch.cat(parts).reshape(-1, side, side).numpy()


def iou(head: nn.Module, archive: Archive, tiles: ndarray) -> float:
    """Return the IoU of class 1 over all pixels of some tiles."""
    coarse = torch.from_numpy(probabilities(head, archive, tiles))[:, None]
    fine = interpolate(coarse, size=(TILE_PX, TILE_PX), mode="bilinear", align_corners=False)[:, 0].numpy()
    return scores(confusion_matrix(archive.labels[tiles], (fine >= 0.5).astype(np.uint8), 2)).headline()["iou"]
