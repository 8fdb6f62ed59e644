"""Trainings in one place, scored there and in others, for the benchmarks of variants: runs and cached scores."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy import ndarray
from rasterio.windows import Window as RasterWindow

from geograft import MaskSource, VectorSource, prepare
from geograft.card import STATE, WEIGHTS
from geograft.commands.compare import slug
from geograft.commands.train import scaling_of, training_data
from geograft.config import Recipe
from geograft.dataset.joined import TileSetPaths
from geograft.dataset.tileset import META, TileSet
from geograft.files import atomic_write, json_digest
from geograft.legend import IGNORE
from geograft.metrics.calibration import probability_counts
from geograft.networks.network import FROZEN_STAGES, Network, build
from geograft.training.checkpoint import load_weights
from geograft.training.loader import Scaling
from geograft.training.loop import fit
from rasters import SCENE
from tile_changes import (
    Change,
    ChangedTiles,
    randomly_blurred,
    with_donor_amplitudes,
    with_donor_histogram,
    without_random_band,
)

STEPS, TILE_PX = 120, 128
TEST = 1 / 3
APART = {"nepal"}
"""Places that are not in the means, and where nothing is trained."""
CLASSES = {
    "trees": {1: "tree", 0: "other"},
    "roads": {1: "road", 0: "other"},
    "landslides": {1: "slide", 0: "other"},
    "forest": {1: "forest", 2: "other"},
    "crowns": {1: "crown", 0: "other"},
}
PLACES = {
    "trees": ("claremont", "riverside", "long_beach"),
    "roads": ("vegas", "japan"),
    "landslides": ("sichuan", "nepal"),
    "forest": ("amazon",),
    "crowns": ("meadow", "slope"),
}
CROWN_SCENES = {"meadow": SCENE, "slope": SCENE.with_name("elsewhere.tif")}
PIECE_PX = 256
"""Side of the pieces into which the two scenes of crowns are cut: a part of them is held out like whole scenes."""
OVERLAP = {"trees": 0.5}
"""Of the small scenes, for more tiles to draw from."""


@dataclass(frozen=True)
class Variant:
    """A change of the default's training."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    change: Change | None = None
    per_image: bool = False
    """Whether the bands of every scene are standardised by its own mean and standard deviation."""
    all_others: bool = False
    """Whether it trains on all places but the one that it is scored in, for as many steps."""
    rebuild: Callable[[Network], None] | None = None
    """Changes the network after it was built with its pretrained weights."""
    lengthening: float = 1
    """Factor of the number of steps."""


LONGER = Variant("3 times as many steps", lengthening=3)
LONGER_COLOURED = Variant("3 times as many steps, colour augmentation", train={"augment": "colour"}, lengthening=3)
VARIANTS = (
    Variant("the default"),
    Variant("colour augmentation", train={"augment": "colour"}),
    Variant("scale jitter", train={"scale_jitter": 0.25}),
    Variant("blur", change=randomly_blurred),
    Variant("band drop", change=without_random_band),
    Variant("histogram matching between scenes", change=with_donor_histogram),
    Variant("Fourier mixing between scenes", change=with_donor_amplitudes),
    Variant("normalisation per image", per_image=True),
    Variant("nothing frozen", model={"frozen_stages": 0}),
    Variant("four stages frozen", model={"frozen_stages": 4}),
    Variant("EMA of 0.98", train={"ema": 0.98}),
    Variant("no EMA", train={"ema": 0.0}),
    Variant("label smoothing", train={"label_smoothing": 0.1}),
    LONGER,
    LONGER_COLOURED,
    Variant("two source places", all_others=True),
)


@dataclass(frozen=True)
class Run:
    """One training: a variant, the places that it trains on, and the seed."""

    variant: Variant
    kind: str
    sources: tuple[str, ...]
    seed: int

    @property
    def title(self) -> str:
        """Description for progress."""
        return f"{self.variant.name}, {self.kind}, {' and '.join(self.sources)}, seed {self.seed}"


class Laboratory:
    """Tile sets, trainings and scores in a folder."""

    def __init__(self, data: Path, folder: Path, recipe: Recipe, bands: tuple[int, ...] = ()) -> None:
        """Use the data in a folder; `bands` are those of the images in the network's order, by default all."""
        self.data, self.folder, self.bands = data, folder, bands
        # The same in all kinds, whatever their bands.
        self.recipe = recipe.with_settings(model={"frozen_stages": FROZEN_STAGES})

    def tiles(self, kind: str, place: str) -> TileSet:
        """Return the tile set of one place, prepared once: a third of the scenes is the test split."""
        out = self.folder / "tiles" / f"{kind}-{place}"
        if not (out / META).exists():
            settings = {"tile_px": TILE_PX, "overlap": OVERLAP.get(kind, 0.0), "split": "scene", "val": 0, "test": TEST}
            settings |= {"bands": self.bands}
            prepare(self.source(kind, place), out, self.recipe.with_settings(prepare=settings).prepare)
        return TileSet.open(out)

    def source(self, kind: str, place: str) -> MaskSource:
        """Return the images and masks of one place: links to those of the data, or pieces of a scene of crowns."""
        images, masks = (self.folder / "tiles" / f"{kind}-{place}-{side}" for side in ("images", "masks"))
        if kind == "crowns":
            cut_scene(CROWN_SCENES[place], self.folder / "tiles" / f"{kind}-{place}-scene", images, masks)
            return MaskSource(images, masks, classes=CLASSES[kind], ignore=IGNORE)
        for side, name in ((images, "images"), (masks, "masks")):
            side.mkdir(parents=True, exist_ok=True)
            own = (self.data.parent / place if kind == "forest" else self.data / kind) / name
            for file in sorted(own.glob("*" if kind == "forest" else f"{place}_*")):
                if not (side / file.name).exists():
                    (side / file.name).symlink_to(file.resolve())
        return MaskSource(images, masks, classes=CLASSES[kind], skip_mismatched=kind == "forest")

    def joined(self, run: Run) -> TileSet:
        """Return the tile set that a run trains on."""
        folders = [self.tiles(run.kind, place).folder for place in run.sources]
        return TileSetPaths.of(folders if len(folders) > 1 else folders[0]).open()

    def recipe_of(self, run: Run, count: int = 0) -> Recipe:
        """Return the recipe of a run, with as many epochs as make STEPS steps of its own or `count` tiles."""
        config = self.recipe.train
        per_epoch = -(-(count or len(self.joined(run).split("train"))) // config.batch_size)
        epochs = max(1, round(run.variant.lengthening * STEPS / per_epoch))
        train = {"epochs": epochs, "warmup_epochs": epochs / 10, "seed": run.seed, "device": "cpu"}
        changed = {"crops": run.variant.change is not None}
        return self.recipe.with_settings(model=run.variant.model, train=train | changed | run.variant.train)

    def path(self, run: Run) -> Path:
        """Return the path of a run's scores. Other changes, steps or tiles have another path."""
        own = run.variant
        change = own.change.__name__ if own.change else ""
        rebuilt = [own.rebuild.__name__ if own.rebuild else "", own.lengthening, self.recipe.model.encoder]
        settings = [own.model, own.train, change, own.per_image, STEPS, TILE_PX, self.joined(run).meta.fingerprint]
        settings += rebuilt
        name = f"{run.kind}-{'+'.join(run.sources)}-{run.seed}-{json_digest(settings)[:8]}.npz"
        return self.folder / slug(own.name) / name

    def scores(self, run: Run) -> dict[str, ndarray]:
        """Return a run's histograms of the probability by "place:scene", (2, 1001). Trains it if they are missing."""
        path = self.path(run)
        if not path.exists():
            began = time.process_time()
            network, scaling = self.train(run, path.with_suffix(""))
            found = dict(self.predict(run, network, scaling))
            with atomic_write(path) as part, part.open("wb") as file:
                np.savez_compressed(file, **found)  # type: ignore[arg-type]
            print(f"{run.title}: {time.process_time() - began:.0f} s", file=sys.stderr, flush=True)
        with np.load(path, allow_pickle=False) as saved:
            return {name: saved[name].astype(np.int64) for name in saved.files}

    def fill(self, runs: Sequence[Run]) -> None:
        """Train and score the runs that are missing."""
        missing = [run for run in runs if not self.path(run).exists()]
        for number, run in enumerate(missing, start=1):
            print(f"{number} of {len(missing)} runs: {run.title}", file=sys.stderr, flush=True)
            self.scores(run)

    def counts(self, run: Run, place: str) -> ndarray:
        """Return a run's histograms in one place, (scenes, 2, 1001)."""
        scores = self.scores(run)
        return np.stack([scores[name] for name in sorted(scores) if name.startswith(f"{place}:")])

    def train(self, run: Run, folder: Path, tiles: TileSet | None = None) -> tuple[Network, Scaling]:
        """Return the trained network and its scaling; an interrupted training goes on. `tiles` replaces the run's."""
        tiles = tiles or self.joined(run)
        recipe = self.recipe_of(run, len(tiles.split("train")))
        torch.manual_seed(run.seed)
        network = self.build(run, recipe, tiles.meta.bands)
        scaling = scaling_of(tiles.meta, network, recipe.train.normalise)
        data = training_data(tiles, recipe, scaling)
        if run.variant.per_image:
            scaling = Scaling((0.0,) * tiles.meta.bands, (1.0,) * tiles.meta.bands)
            data = replace(data, train=StandardisedTiles(data.train, self.statistics(tiles)), scaling=scaling)
        elif run.variant.change is not None:
            data = replace(data, train=ChangedTiles(data.train, run.variant.change))
        fit(network, data, recipe.train, folder, resume=(folder / STATE).exists())
        (folder / STATE).unlink(missing_ok=True)
        return network, scaling

    @staticmethod
    def build(run: Run, recipe: Recipe, bands: int) -> Network:
        """Return the network of a run before training."""
        network = build(recipe.model, bands, 1)
        if run.variant.rebuild:
            run.variant.rebuild(network)
        return network

    def trained(self, run: Run) -> tuple[Network, Scaling]:
        """Return the network of a finished run, for prediction, and its scaling."""
        recipe, tiles = self.recipe_of(run), self.joined(run)
        network = self.build(run, recipe, tiles.meta.bands)
        load_weights(self.path(run).with_suffix("") / WEIGHTS, network)
        return network.eval(), scaling_of(tiles.meta, network, recipe.train.normalise)

    def predict(self, run: Run, network: Network, scaling: Scaling) -> Iterator[tuple[str, ndarray]]:
        """Yield the histograms of each scene that the run has not seen, by "place:scene"."""
        for place in PLACES[run.kind]:
            tiles = self.tiles(run.kind, place)
            for scene in held_out_scenes(tiles, place, run):
                image, label = read_scene(tiles, scene)
                image = standardise(image) if run.variant.per_image else image
                yield f"{place}:{scene}", probability_histogram(network, scaling(image), label)

    def statistics(self, tiles: TileSet) -> dict[str, tuple[ndarray, ndarray]]:
        """Return the mean and standard deviation of each band by scene."""
        images = {scene: read_scene(tiles, scene)[0] for scene in tiles.scenes}
        return {scene: band_statistics(image) for scene, image in images.items()}


def cut_scene(scene: Path, labelled: Path, images: Path, masks: Path) -> None:
    """Cut a labelled scene into pieces with masks, once. `labelled` is where its mask is made."""
    if not (labelled / META).exists():
        labels = VectorSource((scene,), scene.with_suffix(".gpkg"), class_field="class")
        prepare(labels, labelled, Recipe().with_settings(prepare={"tile_px": TILE_PX, "split": "block"}).prepare)
    whole = TileSet.open(labelled)
    for folder, path in ((images, scene), (masks, whole.mask_path(scene.stem))):
        folder.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path) as raster:
            corners = [range(0, side - PIECE_PX + 1, PIECE_PX) for side in raster.shape]
            for row, col in product(*corners):
                window = RasterWindow(col, row, PIECE_PX, PIECE_PX)
                # Not georeferenced: touching scenes would be kept in one split.
                profile = {key: raster.profile[key] for key in ("driver", "count", "dtype")}
                profile |= {"width": PIECE_PX, "height": PIECE_PX}
                with rasterio.open(folder / f"{scene.stem}_{row}_{col}.tif", "w", **profile) as piece:
                    piece.write(raster.read(window=window))


def band_statistics(image: ndarray) -> tuple[ndarray, ndarray]:
    """Return the mean and standard deviation of each band, (B, 1, 1)."""
    return image.mean(axis=(1, 2), keepdims=True), np.maximum(image.std(axis=(1, 2), keepdims=True), 1e-6)


def standardise(image: ndarray) -> ndarray:
    """Return the image with mean 0 and standard deviation 1 in each band."""
    mean, std = band_statistics(image)
    standardised: ndarray = (image - mean) / std
    return standardised


@dataclass
class StandardisedTiles:
    """Training tiles standardised by the statistics of their scenes."""

    samples: Any
    statistics: dict[str, tuple[ndarray, ndarray]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[ndarray, ndarray]:
        image, label = self.samples[index]
        mean, std = self.statistics[self.samples.tiles[index].scene]
        return ((image - mean) / std).astype(np.float32), label


def held_out_scenes(tiles: TileSet, place: str, run: Run) -> list[str]:
    """Return the scenes of a place that a run has not seen."""
    return sorted({tile.scene for tile in tiles.tiles if place not in run.sources or tile.split == "test"})


def read_scene(tiles: TileSet, scene: str) -> tuple[ndarray, ndarray]:
    """Return the image of a scene, float32 (B, H, W), and its label, uint8 (H, W)."""
    bands = list(tiles.meta.settings.bands) or None
    with rasterio.open(tiles.image_path(scene)) as image, rasterio.open(tiles.mask_path(scene)) as mask:
        return image.read(bands).astype(np.float32), mask.read(1)


def probability_histogram(network: Network, image: ndarray, label: ndarray) -> ndarray:
    """Return the histograms of the probability in negative and positive pixels of a scene, (2, 1001)."""
    network.eval()
    with torch.inference_mode():
        batch = torch.from_numpy(image[None]).to(memory_format=torch.channels_last)
        probability = torch.sigmoid(network(batch))[0, 0].numpy()
    known = label != IGNORE
    return probability_counts(probability[known], label[known] == 1)


def transfers(kind: str) -> list[tuple[str, str]]:
    """Return the pairs of a place to train in and a place to score in, the same place included."""
    sources = [place for place in PLACES[kind] if place not in APART]
    return [(source, target) for source in sources for target in PLACES[kind]]


def runs_for(variant: Variant, kind: str, source: str, target: str, seed: int) -> list[Run]:
    """Return the runs whose mean score stands for the transfer from `source` to `target`."""
    if not variant.all_others:
        return [Run(variant, kind, (source,), seed)]
    trained = [place for place in PLACES[kind] if place not in APART]
    left_out = [target] if target != source else [place for place in trained if place != source]
    groups = [tuple(place for place in trained if place != each) for each in left_out]
    return [Run(variant, kind, group, seed) for group in groups]


def is_possible(variant: Variant, kind: str) -> bool:
    """Return whether a kind has enough places for the variant."""
    return not variant.all_others or len(set(PLACES[kind]) - APART) > 2


def planned(variants: Sequence[Variant], kinds: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Return all runs without repetition: kind by kind, so that early results compare all variants."""
    found = [
        run
        for seed in seeds
        for kind in kinds
        for variant in variants
        if is_possible(variant, kind)
        for source, target in transfers(kind)
        for run in runs_for(variant, kind, source, target, seed)
    ]
    return list({(run.variant.name, run.kind, run.sources, run.seed): run for run in found}.values())
