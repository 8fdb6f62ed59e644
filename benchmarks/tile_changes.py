"""Candidate augmentations of training tiles that are not in Geograft: blur, dropped bands, and mixing between scenes.

Each takes a tile (B, H, W) in its own units, for any number of bands, and returns a new one; the labels stay. Strength
0 returns the tile unchanged.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.ndimage import gaussian_filter

from geograft.dataset.tileset import Samples
from geograft.labels import image_mask
from geograft.training.augment import TrainingTile

APPLIED = 0.5
"""Fraction of the tiles that are changed."""
MAX_BLUR_PX = 1.5
LOW_FREQUENCIES = 0.05
"""Frequencies whose amplitudes are mixed, as a fraction of the tile's side on each side of zero: beta of FDA."""
QUANTILES = np.linspace(0, 1, 101)


def blur(image: ndarray, sigma_px: float) -> ndarray:
    """Return the tile blurred by a Gaussian."""
    return gaussian_filter(image, (0, sigma_px, sigma_px), mode="reflect") if sigma_px else image


def drop_band(image: ndarray, band: int) -> ndarray:
    """Return the tile with one band replaced by its mean."""
    dropped = image.copy()
    dropped[band] = image[band].mean()
    return dropped


def match_histogram(image: ndarray, donor: ndarray, strength: float) -> ndarray:
    """Return the tile with the histogram of each band moved towards that of `donor`; 1 is the donor's own."""
    matched = [
        np.interp(own, np.quantile(own, QUANTILES), np.quantile(other, QUANTILES))
        for own, other in zip(image, donor, strict=True)
    ]
    mixed: ndarray = ((1 - strength) * image + strength * np.stack(matched)).astype(np.float32)
    return mixed


def mix_amplitudes(image: ndarray, donor: ndarray, strength: float, beta: float = LOW_FREQUENCIES) -> ndarray:
    """Return the tile with the amplitudes of low spatial frequencies moved towards those of `donor`.

    Source: Y. Yang and S. Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation" (CVPR 2020), eq. 3, with
    `strength` as in Q. Xu et al., "A Fourier-based Framework for Domain Generalization" (CVPR 2021), eq. 3.
    """
    own, other = (np.fft.rfft2(each, axes=(1, 2)) for each in (image, donor))
    amplitude = np.abs(own)
    low = np.abs(np.fft.fftfreq(image.shape[1]))[:, None] <= beta
    low = low & (np.fft.rfftfreq(image.shape[2]) <= beta)
    mixed = np.where(low, (1 - strength) * amplitude + strength * np.abs(other), amplitude)
    restored = np.fft.irfft2(mixed * np.exp(1j * np.angle(own)), s=image.shape[1:], axes=(1, 2))
    return restored.astype(np.float32)


Change = Callable[[ndarray, Callable[[], ndarray], np.random.Generator], ndarray]
"""Function of a tile, a function that reads another random tile, and random numbers."""


def randomly_blurred(image: ndarray, _donor: Callable[[], ndarray], rng: np.random.Generator) -> ndarray:
    """Blur by a random width."""
    return blur(image, float(rng.uniform(0, MAX_BLUR_PX)))


def without_random_band(image: ndarray, _donor: Callable[[], ndarray], rng: np.random.Generator) -> ndarray:
    """Drop one band."""
    return drop_band(image, int(rng.integers(len(image))))


def with_donor_histogram(image: ndarray, donor: Callable[[], ndarray], rng: np.random.Generator) -> ndarray:
    """Match the histogram of another tile by a random strength."""
    return match_histogram(image, donor(), float(rng.random()))


def with_donor_amplitudes(image: ndarray, donor: Callable[[], ndarray], rng: np.random.Generator) -> ndarray:
    """Mix low frequencies with those of another tile by a random strength."""
    return mix_amplitudes(image, donor(), float(rng.random()))


@dataclass
class ChangedTiles:
    """Training tiles that are changed at random, by the seed, the epoch and the tile alone.

    The data loader draws random crops with a generator of their own for each tile and epoch. These are no crops: the
    tile stays where it is, and the generator decides the change.
    """

    samples: Samples
    change: Change

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> TrainingTile:
        return self.samples[index]

    def random_crop(self, index: int, rng: np.random.Generator, /) -> TrainingTile:
        """Return the tile, changed or not; pixels without image data stay as they are."""
        image, label = self.samples[index]
        other = int(rng.integers(len(self.samples)))
        if rng.random() >= APPLIED:
            return image, label
        changed = self.change(image, lambda: self.samples[other][0], rng)
        return np.where(image_mask(image, label), changed, image), label
