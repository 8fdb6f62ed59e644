"""What can be done in another place without any label: thresholds, batch norm, TTA, ensembles, self-training.

    python benchmarks/label_free.py --data ../shared/data/places [--folder build/generalisation] [--write]

The runs are those of `bench_generalisation.py`, which trains them. Each remedy is applied to the first seed's runs, in
place and elsewhere; the ensemble has all seeds. Self-training is elsewhere only: where a run is sure of a pixel of the
other place, that is its label, and a new run trains on these and the labelled tiles together, for as many steps, and is
scored on the same images. Differences are from the same runs as they are, at a threshold of 0.5 and at the best one. In
brackets: 95 % confidence intervals over scenes.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy import ndarray
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor, nn

import machine
import page
from bench_generalisation import HALF, THRESHOLDS, Means, difference_text, ious, pairs_of, scene_weights
from geograft import load_recipe
from geograft.commands.demo import LITE0
from geograft.dataset.folds import write_derived_set
from geograft.dataset.joined import TileSetPaths
from geograft.files import atomic_write
from geograft.legend import IGNORE
from geograft.metrics.calibration import STEPS as BINS
from geograft.metrics.calibration import probability_counts
from geograft.networks.network import Network
from geograft.training.augment import JITTER, jitter_colours
from laboratory import VARIANTS, Laboratory, Run, held_out_scenes, probability_histogram, read_scene

DEFAULT = VARIANTS[0]
MIXED = 0.25
"""Fraction of the target's batch-norm statistics."""
TTA_DRAWS = 3
SURE = 0.9
"""Lowest probability of a pseudo-label."""
Image = ndarray
Predict = Callable[[Sequence[Network], Sequence[Image]], Iterator[ndarray]]
"""Function from networks and the normalised images of a place to their probabilities."""


def probability(networks: Sequence[Network], image: Image) -> ndarray:
    """Return the mean probability of several networks, (H, W)."""
    batch = torch.from_numpy(image[None]).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        mean: ndarray = torch.stack([torch.sigmoid(network(batch))[0, 0] for network in networks]).mean(dim=0).numpy()
    return mean


def as_it_is(networks: Sequence[Network], images: Sequence[Image]) -> Iterator[ndarray]:
    """Predict, as in a map."""
    for image in images:
        yield probability(networks, image)


def with_colour_tta(networks: Sequence[Network], images: Sequence[Image]) -> Iterator[ndarray]:
    """Predict the mean of the image and of copies with jittered colours."""
    for number, image in enumerate(images):
        rng = np.random.default_rng(number)
        valid, bands = np.ones(image.shape[1:], bool), len(image)
        found = [probability(networks, image)]
        for _ in range(TTA_DRAWS):
            common, contrast, saturation, *own = rng.uniform(-JITTER, JITTER, 3 + bands)
            colours = jitter_colours(image, valid, np.ones(bands), common + np.array(own), contrast, saturation)
            found.append(probability(networks, colours))
        yield np.mean(found, axis=0)


def with_mixed_statistics(networks: Sequence[Network], images: Sequence[Image]) -> Iterator[ndarray]:
    """Predict with batch-norm statistics that are mixed with those of the place's images.

    Source: M. Klingner et al., "Unsupervised BatchNorm Adaptation (UBNA)" (WACV 2022); here one pass without momentum.
    """
    for network in networks:
        layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        with recorded_statistics(layers) as recorded:
            for image in images:
                probability([network], image)
        for layer in layers:
            mean, variance = recorded(layer)
            layer.running_mean.lerp_(mean, MIXED)  # type: ignore[union-attr]
            layer.running_var.lerp_(variance, MIXED)  # type: ignore[union-attr]
    yield from as_it_is(networks, images)


@contextmanager
def recorded_statistics(
    layers: Sequence[nn.BatchNorm2d],
) -> Iterator[Callable[[nn.BatchNorm2d], tuple[Tensor, Tensor]]]:
    """Record the inputs' mean and variance by channel; yields a function that returns them for a layer."""
    sums: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}

    def record(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        sums[layer].append((given[0].mean(dim=(0, 2, 3)), given[0].square().mean(dim=(0, 2, 3))))

    def statistics(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        mean, square = (torch.stack(each).mean(dim=0) for each in zip(*sums[layer], strict=True))
        return mean, square - mean**2

    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()


REMEDIES: dict[str, Predict] = {
    "batch-norm statistics mixed with 0.25 of the place's": with_mixed_statistics,
    "colour TTA": with_colour_tta,
}
AS_IT_IS = "as it is"
SELF_TRAINED = f"self-training above {SURE:g}"
ENSEMBLE, EXPECTED = "ensemble of the seeds", "threshold of the highest expected IoU"
CHOSEN = "threshold that is best on the held-out scenes in place"
"""With labels in place: what `geograft calibrate` does. Its score in place is on the scenes that it was chosen on."""
ALL = (AS_IT_IS, EXPECTED, CHOSEN, *REMEDIES, ENSEMBLE, SELF_TRAINED)


def pseudo_label(probability: ndarray, label: ndarray) -> ndarray:
    """Return the label of each pixel that a network is sure of, uint8; of all others, and where `label` has none, none.

    `label` is not used otherwise.
    """
    sure = (np.maximum(probability, 1 - probability) >= SURE) & (label != IGNORE)
    return np.where(sure, probability >= 1 / 2, IGNORE).astype(np.uint8)


def expected_threshold(counts: ndarray) -> int:
    """Return the bin of the threshold with the highest expected IoU under the probabilities themselves.

    Source: S. Nowozin, "Optimal Decisions from Probabilistic Models" (CVPR 2014), with the ratio of expectations.
    """
    pixels = counts.sum(axis=(0, 1)).astype(np.float64)
    expected = pixels * np.minimum((np.arange(BINS + 1) + 0.5) / BINS, 1)
    hit, predicted = (each[::-1].cumsum()[::-1] for each in (expected, pixels))
    iou = hit / np.maximum(predicted + expected.sum() - hit, 1)
    return int(1 + iou[1:].argmax())


class LabelFree:
    """Histograms of the default's runs under each remedy, cached beside the runs."""

    def __init__(self, laboratory: Laboratory, seeds: Sequence[int]) -> None:
        self._laboratory, self._seeds = laboratory, seeds

    def counts(self, remedy: str, kind: str, source: str, target: str) -> ndarray:
        """Return the histograms of the scenes of one transfer, (scenes, 2, 1001)."""
        if remedy == AS_IT_IS:
            return self._laboratory.counts(Run(DEFAULT, kind, (source,), self._seeds[0]), target)
        seeds = self._seeds if remedy == ENSEMBLE else self._seeds[:1]
        name = f"{kind}-{source}-{target}-{'+'.join(map(str, seeds))}.npy"
        path = self._laboratory.folder / "label-free" / remedy.replace(" ", "-") / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            runs = [Run(DEFAULT, kind, (source,), seed) for seed in seeds]
            if remedy == SELF_TRAINED:
                found = self._self_train(runs[0], target, path.with_suffix(""))
            else:
                found = self._predict(REMEDIES.get(remedy, as_it_is), runs, target)
            with atomic_write(path) as part, part.open("wb") as file:
                np.save(file, found)
            print(f"{remedy}, {kind}: {source} to {target}", file=sys.stderr, flush=True)
        loaded: ndarray = np.load(path, allow_pickle=False)
        return loaded

    def _predict(self, predict: Predict, runs: Sequence[Run], target: str) -> ndarray:
        tiles = self._laboratory.tiles(runs[0].kind, target)
        networks, scaling = zip(*(self._laboratory.trained(run) for run in runs), strict=True)
        scenes = [read_scene(tiles, scene) for scene in held_out_scenes(tiles, target, runs[0])]
        images = [scaling[0](image) for image, _ in scenes]
        found = zip(predict(networks, images), (label for _, label in scenes), strict=True)
        return np.stack([probability_counts(p[label != IGNORE], label[label != IGNORE] == 1) for p, label in found])

    def _self_train(self, run: Run, target: str, folder: Path) -> ndarray:
        """Train on a run's own tiles and on pseudo-labels of another place, and return the histograms there."""
        own, other = self._laboratory.joined(run), self._laboratory.tiles(run.kind, target)
        masks = folder / "masks"
        masks.mkdir(parents=True, exist_ok=True)
        network, scaling = self._laboratory.trained(run)
        for scene in other.scenes:
            image, label = read_scene(other, scene)
            with rasterio.open(other.mask_path(scene)) as known:
                profile = known.profile
            with rasterio.open(masks / other.mask_path(scene).name, "w", **profile) as raster:
                raster.write(pseudo_label(probability([network], scaling(image)), label), 1)
        labelled = replace(other, meta=replace(other.meta, masks=str(masks), fingerprint=f"{folder.name} {SURE}"))
        everything = [replace(tile, split="train") for tile in other.tiles]
        sets = [
            write_derived_set(own, own.split("train"), folder / "own"),
            write_derived_set(labelled, everything, folder / "other"),
        ]
        network, scaling = self._laboratory.train(run, folder / "run", TileSetPaths.of(sets).open())
        scenes = [read_scene(other, scene) for scene in held_out_scenes(other, target, run)]
        return np.stack([probability_histogram(network, scaling(image), label) for image, label in scenes])

    def means(self, remedy: str, kinds: Sequence[str], elsewhere: bool, best: bool = False) -> Means:
        """Return the mean IoU over places at 0.5, the remedy's threshold or the best one of each transfer."""
        by_place: dict[tuple[str, str], list[ndarray]] = {}
        units = []
        for kind, source, target in pairs_of(DEFAULT, kinds, elsewhere):
            counts = self.counts(AS_IT_IS if remedy in (EXPECTED, CHOSEN) else remedy, kind, source, target)
            thresholds = THRESHOLDS if best else np.array([HALF])
            if remedy == EXPECTED:
                thresholds = np.array([expected_threshold(counts)])
            if remedy == CHOSEN:
                own = self.counts(AS_IT_IS, kind, source, source)
                thresholds = THRESHOLDS[[ious(own, np.ones((1, len(own))), THRESHOLDS).argmax()]]
            draws = ious(counts, scene_weights(target, len(counts)), thresholds).max(axis=1)
            by_place.setdefault((kind, target), []).append(draws)
            units.append(len(counts))
        mean = np.mean([np.mean(each, axis=0) for each in by_place.values()], axis=0)
        return Means(float(mean[0]), mean[1:], min(units))

    def row(self, remedy: str, kinds: Sequence[str]) -> list[str]:
        """Return the row of the table: in place, elsewhere, and elsewhere at the best thresholds."""
        cells = []
        for where, best in ((False, False), (True, False), (True, True)):
            if (remedy == SELF_TRAINED and not where) or (remedy in (EXPECTED, CHOSEN) and best):
                cells.append("")
                continue
            found, default = (self.means(each, kinds, where, best) for each in (remedy, AS_IT_IS))
            cells.append(f"{found.value:.3f}" if remedy == AS_IT_IS else difference_text(found - default))
        return [f"**{remedy}**" if remedy == AS_IT_IS else remedy, *cells]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with trees/ and roads/")
    parser.add_argument("--folder", type=Path, default=Path("build/generalisation"), help="of bench_generalisation.py")
    parser.add_argument("--kinds", nargs="+", default=["trees", "roads"], help="default trees roads")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the ensemble (default 0 1 2)")
    parser.add_argument("--remedies", nargs="+", default=list(ALL), choices=ALL, help="default: all")
    parser.add_argument("--encoder", default=LITE0["encoder"], help=f"of the runs; default {LITE0['encoder']}")
    parser.add_argument("--weights", default=LITE0["weights"], help=f"of the runs; default {LITE0['weights']}")
    parser.add_argument("--write", action="store_true", help="put the table into docs/places.md")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    torch.set_num_threads(1)
    model = {"encoder": given.encoder, "weights": given.weights}
    laboratory = Laboratory(given.data, given.folder, load_recipe(Path("default")).with_settings(model=model))
    found = LabelFree(laboratory, given.seeds)
    rows = [found.row(remedy, given.kinds) for remedy in dict.fromkeys((AS_IT_IS, *given.remedies))]
    text = page.table(["without labels", "in place", "elsewhere", "elsewhere, best thresholds"], rows)
    text += (
        f"\n\nEncoder: {given.encoder}; kinds: {' '.join(given.kinds)}; seeds: {' '.join(map(str, given.seeds))}. "
        f"{machine.describe(('torch', 'timm'))}"
    )
    print(text)
    if given.write:
        page.write_section("label-free", text, page.PAGE.with_name("places.md"))


if __name__ == "__main__":
    main()
