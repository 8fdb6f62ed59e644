"""Scenes and models for tests of blending."""

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from geograft.geo.grid import Window
from geograft.mapping.blend import BlendPlan, Strip, blend
from geograft.mapping.sums import Model
from geograft.mapping.windows import Lanes, TileGrid

GRIDS = st.builds(
    TileGrid,
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile_px=st.sampled_from([16, 17, 24, 32]),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.6, 0.75]),
)
PANELS = st.sampled_from([1, 16, 40, 10**9])


class Scene:
    """A source over arrays that refuses windows beyond them and counts its calls."""

    def __init__(self, pixels: ndarray, valid: ndarray | None = None, area: ndarray | None = None) -> None:
        self.pixels, self.area = pixels, area
        self.valid = np.ones(pixels.shape[1:], bool) if valid is None else valid
        self.reads: list[Window] = []
        self.empty_checks = 0

    @property
    def mapped(self) -> ndarray:
        return self.valid if self.area is None else self.valid & self.area

    def is_empty(self, window: Window) -> bool:
        self.empty_checks += 1
        area = self.mask_of_interest(window)
        return not self._of(self.valid, window).any() or (area is not None and not area.any())

    def read(self, window: Window) -> tuple[ndarray, ndarray]:
        self.reads.append(window)
        return self._of(self.pixels, window), self._of(self.valid, window)

    def mask_of_interest(self, window: Window) -> ndarray | None:
        return None if self.area is None else self._of(self.area, window)

    def _of(self, array: ndarray, window: Window) -> ndarray:
        assert window.intersection(Window(0, 0, *self.valid.shape)) == window
        return array[..., *window.slices]


def blend_strips(
    tiles: TileGrid, scene: Scene, model: Model, *, panel_px: int = 10**9, finished: Sequence[Strip] = (), **cut: int
) -> list[Strip]:
    """Blend all lanes and return their strips. `finished` are the strips of an interrupted job."""
    strips = list(finished)
    plan = BlendPlan(Lanes(tiles, panel_px), **{"layers": 1, **cut})
    for strip in blend(plan, scene, model, [strip.tiles for strip in finished], lambda lane: strips[lane].carry_over):
        assert strip.lane == len(strips)
        strips.append(strip)
    return strips


def assemble(tiles: TileGrid, strips: Sequence[Strip]) -> tuple[ndarray, ndarray]:
    """Return the sums of all strips, 0 outside their data, and the mask of mapped pixels."""
    sums = np.zeros((strips[0].sums.array.shape[0], tiles.height, tiles.width), np.uint32)
    mapped = np.zeros((tiles.height, tiles.width), bool)
    for strip in strips:
        sums[:, *strip.data.slices] = strip.sums.array
        mapped[strip.data.slices] = strip.mapped
    return np.where(mapped, sums, 0), mapped


def pointwise(pixels: ndarray, _: ndarray) -> ndarray:
    """A model without context."""
    return np.concatenate([1 / (1 + np.exp(-pixels[:, :1])), 0.5 + 0.5 * np.sin(pixels[:, 1:2])], axis=1)


def contextual(pixels: ndarray, valid: ndarray) -> ndarray:
    """A model whose output depends on the whole tile and on the position in it, as a network's does."""
    visible = np.where(valid[:, None], pixels, np.float32(0))
    rows, cols = np.indices(pixels.shape[2:])
    mean = visible.mean(axis=(1, 2, 3), keepdims=True)
    return (0.5 + 0.4 * np.sin(visible[:, :1] + mean + 0.1 * rows * cols)).astype(np.float32)


def batch_dependent(pixels: ndarray, valid: ndarray) -> ndarray:
    """A model whose output for a tile depends on the others in its batch, which no network's may."""
    batch_mean = np.arange(1, len(pixels) + 1) @ pixels.mean(axis=(1, 2, 3))
    return (0.5 + 0.4 * np.sin(pixels[:, :1] + np.float32(batch_mean))).astype(np.float32)


def constant(value: float) -> Callable[[ndarray, ndarray], ndarray]:
    return lambda pixels, _: np.full((len(pixels), 1, *pixels.shape[2:]), value, np.float32)


def noise(*shape: int, seed: int = 0) -> ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
