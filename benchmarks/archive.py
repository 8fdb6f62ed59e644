"""An archive of labelled tiles as a frozen encoder sees them, and what trains on it in a second: a small pixel head."""

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
from geograft.metrics.scores import confusion_matrix, scores
from geograft.networks.pyramid import build_pyramid

TILE_PX, STRIDE, CELL_PX = 128, 4, 64
ARCHIVE = "archive.npz"
DEEPEST = 16
"""Deepest stride of the encoder that is used."""
STEPS, PIXELS, RATE, HIDDEN = 200, 1024, 3e-3, 32
BATCH = 32


@dataclass(frozen=True)
class Archive:
    """n tiles, of which a simulation hides the labels."""

    pixels: ndarray
    """(n, p, d): what the encoder sees in each pixel of a quarter of the resolution, standardised."""
    labels: ndarray
    """(n, t, t) uint8: the class index of every pixel."""
    scenes: ndarray
    """(n,) number of the scene, or part of one, of each tile."""

    @cached_property
    def cells(self) -> ndarray:
        """(n, cells, d): means of the cells of each tile, as a run knows them."""
        side, cell = TILE_PX // STRIDE, CELL_PX // STRIDE
        shape = (len(self.pixels), side // cell, cell, side // cell, cell, -1)
        means = self.pixels.reshape(shape).mean(axis=(2, 4), dtype=np.float32)
        return means.reshape(len(means), -1, means.shape[-1])

    def fractions(self, tiles: ndarray) -> Tensor:
        """Return the share of class 1 in every pixel of a quarter of the resolution, (n, p)."""
        side = TILE_PX // STRIDE
        parts = self.labels[tiles].reshape(-1, side, STRIDE, side, STRIDE)
        return torch.from_numpy(parts.mean(axis=(2, 4), dtype=np.float32).reshape(len(tiles), -1))

    def seen(self, tiles: ndarray) -> Tensor:
        """Return what the encoder sees of some tiles, (n, p, d)."""
        return torch.from_numpy(self.pixels[tiles].astype(np.float32, copy=False))


@dataclass(frozen=True)
class Ground:
    """Where an archive comes from."""

    encoder: str
    weights: str
    prepared: Callable[[Path], TileSet]
    """Makes the tile set in a folder."""
    piece: Callable[[Tile], str]
    """The name of the scene, or the part of one, that a tile is of."""


def forest(data: Path, weights: Path) -> Ground:
    """Return the Amazon's: half of all pixels are forest. `data` holds images/ and masks/."""

    def prepared(folder: Path) -> TileSet:
        source = MaskSource(data / "images", data / "masks", {1: "forest", 2: "other"}, skip_mismatched=True)
        return prepare(source, folder, PrepareConfig(tile_px=TILE_PX, overlap=0.0, split="scene", val=0.2, test=0.0))

    return Ground("tf_efficientnet_b0", str(weights), prepared, lambda tile: tile.scene)


def crowns() -> Ground:
    """Return the demo's scene: one pixel in six is of a tree crown. Its parts are of four by four tiles."""

    def prepared(folder: Path) -> TileSet:
        source = VectorSource((SCENES / "training.tif",), SCENES / "training.gpkg", class_field="class")
        return prepare(source, folder, PrepareConfig(tile_px=TILE_PX, overlap=0.0, split="scene", val=0.0, test=0.0))

    edge = 4 * TILE_PX
    return Ground(**LITE0, prepared=prepared, piece=lambda tile: f"{tile.window.row // edge} {tile.window.col // edge}")


def made(ground: Ground, folder: Path) -> None:
    """Write the archive of some ground to `folder`, if it is not there."""
    path, tiles = folder / ARCHIVE, folder / "tiles"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = _seen(TileSet.open(tiles) if tiles.exists() else ground.prepared(tiles), ground)
        np.savez(path, pixels=found.pixels, labels=found.labels, scenes=found.scenes)


@lru_cache
def read(folder: Path) -> Archive:
    """Return the archive in `folder`, read once by each process, which computes with one thread from then on."""
    torch.set_num_threads(1)
    with np.load(folder / ARCHIVE, allow_pickle=False) as held:
        # Widened once: every round reads them all.
        return Archive(held["pixels"].astype(np.float32), held["labels"], held["scenes"])


def _seen(tile_set: TileSet, ground: Ground) -> Archive:
    encoder, origin = build_pyramid(ground.encoder, len(tile_set.meta.band_names), ground.weights)
    assert origin.scaling is not None
    mean, std = (np.array(values)[:, None, None] * 255 for values in (origin.scaling.mean, origin.scaling.std))
    encoder.eval()
    seen, labels, scenes = [], [], []
    for split in SPLITS:
        samples = tile_set.samples(split)
        for index, tile in enumerate(samples.tiles):
            image, label = samples[index]
            # The head learns shares of class 1, which a pixel that is not known would be none of.
            if (label == IGNORE).any():
                continue
            with torch.inference_mode():
                maps = encoder(torch.from_numpy(((image - mean) / std).astype(np.float32))[None])
            seen.append(torch.cat([_quarter(m) for m, s in zip(maps, encoder.strides, strict=True) if s <= DEEPEST], 1))
            labels.append(label)
            scenes.append(ground.piece(tile))
    table = torch.cat(seen).permute(0, 2, 3, 1).flatten(1, 2).numpy()
    standard = (table - table.mean(axis=(0, 1))) / (table.std(axis=(0, 1)) + 1e-6)
    return Archive(standard.astype(np.float16), np.stack(labels), np.unique(scenes, return_inverse=True)[1])


def _quarter(features: Tensor) -> Tensor:
    """Return a feature map at a quarter of the image's resolution."""
    size = TILE_PX // STRIDE
    if features.shape[2] > size:
        return avg_pool2d(features, features.shape[2] // size)
    return interpolate(features, size=(size, size), mode="bilinear", align_corners=False)


def trained(ground: Archive, tiles: Sequence[int], seed: int) -> nn.Module:
    """Return a head trained on the labels of some tiles: two layers, 200 steps of 1,024 pixels. Takes half a second."""
    torch.manual_seed(seed)
    some = np.array(tiles)
    seen, truth = ground.seen(some).flatten(0, 1), ground.fractions(some).flatten()
    head = nn.Sequential(nn.Linear(seen.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    adam = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=0.05)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    for _ in range(STEPS):
        pixels = torch.randint(len(seen), (PIXELS,))
        loss = binary_cross_entropy_with_logits(head(seen[pixels])[:, 0], truth[pixels])
        adam.zero_grad()
        loss.backward()
        adam.step()
        falling.step()
    return head


@torch.inference_mode()
def probabilities(head: nn.Module, ground: Archive, tiles: ndarray) -> ndarray:
    """Return the probability of class 1 at a quarter of the resolution, (n, h, w) float32."""
    side = TILE_PX // STRIDE
    parts = [torch.sigmoid(head(ground.seen(tiles[i : i + BATCH])))[..., 0] for i in range(0, len(tiles), BATCH)]
    return torch.cat(parts).reshape(-1, side, side).numpy()


def iou(head: nn.Module, ground: Archive, tiles: ndarray) -> float:
    """Return the IoU of class 1 over all pixels of some tiles."""
    coarse = torch.from_numpy(probabilities(head, ground, tiles))[:, None]
    fine = interpolate(coarse, size=(TILE_PX, TILE_PX), mode="bilinear", align_corners=False)[:, 0].numpy()
    return scores(confusion_matrix(ground.labels[tiles], (fine >= 0.5).astype(np.uint8), 2)).headline()["iou"]
