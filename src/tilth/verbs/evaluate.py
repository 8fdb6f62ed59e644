"""`tilth evaluate`: a run and a split become scores, from one confusion matrix in which every pixel counts once."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from numpy import ndarray

from tilth.card import ModelCard
from tilth.errors import InputError
from tilth.files import refuse_existing, write_json
from tilth.geo.tileset import Samples, Split, TileSet
from tilth.learn.feed import Sample, imaged
from tilth.learn.inference import Predictor
from tilth.legend import IGNORE
from tilth.progress import track
from tilth.scores import HEADLINES, scores
from tilth.table import table
from tilth.verbs.train import SOURCE

BATCH = 8

Confusion = Int64[ndarray, "k k"]


@dataclass(frozen=True)
class Evaluation:
    """The scores of one run on one split. Confusion matrices have the truth in rows, the map in columns."""

    run: Path
    split: Split
    tiles: Path
    classes: tuple[str, ...]
    tiles_scored: int
    by_scene: Mapping[str, Confusion]

    @property
    def confusion(self) -> Confusion:
        """Pixel counts over all scenes."""
        total: Confusion = np.stack(list(self.by_scene.values())).sum(axis=0)
        return total

    def content(self, name: str) -> dict[str, Any]:
        """Return what the scores file holds: JSON, null where a figure does not exist."""
        total = scores(self.confusion)
        truth = self.confusion.sum(axis=1)
        return {
            "name": name,
            "split": self.split,
            "tiles": str(self.tiles),
            "tiles_scored": self.tiles_scored,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
            "overall": _plain({"accuracy": total.accuracy} | total.headline()),
            "per_class": [
                {"class": self.classes[i]}
                | _plain({score: getattr(total, score)[i] for score in HEADLINES})
                | {"pixels": int(truth[i])}
                for i in range(len(self.classes))
            ],
            "per_scene": [
                {"scene": scene} | _plain(scores(counts).headline()) | {"pixels": int(counts.sum())}
                for scene, counts in self.by_scene.items()
            ],
        }

    def lines(self) -> list[str]:
        """Return what the command line prints: a table by class, and one by scene where there are several."""
        content = self.content(self.split)
        header = ("", "IoU", "F1", "precision", "recall", "pixels")
        by_class = [_row(row["class"], row) for row in content["per_class"]]
        by_scene = [_row(row["scene"], row) for row in content["per_scene"]]
        several = table([("scene", *header[1:]), *by_scene]) if len(by_scene) > 1 else []
        return [
            f"{self.run} on {self.tiles_scored} {self.split} tiles of {self.tiles}: "
            f"accuracy {_figure(content['overall']['accuracy'])}",
            *table([("class", *header[1:]), *by_class]),
            *several,
        ]


def evaluate(run: Path, split: Split = "test", tiles: Path | None = None, out: Path | None = None) -> Evaluation:
    """Score a run on one split and write the scores as JSON to `out`.

    `tiles` is another tile set with the same classes and bands; by default the run's own. `out` is by default
    scores-SPLIT.json in the run, or scores-FOLDER-SPLIT.json for the tile set FOLDER; these are replaced. Takes about
    as long as predicting the tiles.

    Raises:
        InputError: when the run or the tile set cannot be used, do not fit each other, or the split has no tile.
        OutputError: when `out` exists or cannot be written.
    """
    if out is not None:
        refuse_existing(out)
    predictor = Predictor.load(run)
    tile_set = TileSet.open(tiles or tiles_of(run))
    check_fit(predictor.card, tile_set)
    if not tile_set.split(split):
        raise InputError(f"{tile_set.folder} has no {split} tiles. Choose another --split.")
    by_scene = confusions(predictor, tile_set.samples(split, once=True))
    names = predictor.card.legend.names
    result = Evaluation(run, split, tile_set.folder, names, len(tile_set.split(split)), by_scene)
    other = "" if tiles is None else f"{tile_set.folder.resolve().name}-"
    path = out or run / f"scores-{other}{split}.json"
    write_json(path, result.content(path.stem.removeprefix("scores-")))
    return result


def tiles_of(run: Path) -> Path:
    """Return the tile set that a run was trained on.

    Raises:
        InputError: when `run` does not say.
    """
    try:
        return Path(json.loads((run / SOURCE).read_text(encoding="utf-8"))["tiles"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run} does not say what it was trained on ({SOURCE}). Give --tiles.") from error


def check_fit(card: ModelCard, tile_set: TileSet) -> None:
    """Raise InputError when a tile set has other classes, bands or pixels than a run was trained on."""
    meta = tile_set.meta
    seen = (meta.legend.names, len(meta.band_names), meta.dtype)
    needed = (card.legend.names, len(card.band_names), card.dtype)
    for what, got, want in zip(("classes", "bands", "pixels"), seen, needed, strict=True):
        if got != want:
            raise InputError(f"{tile_set.folder} has the {what} {got}; the run was trained on {want}.")


def confusions(predictor: Predictor, samples: Samples) -> dict[str, Confusion]:
    """Return pixel counts by scene, every labelled pixel of the samples counted."""
    k = len(predictor.card.legend.names)
    total: dict[str, Confusion] = defaultdict(lambda: np.zeros((k, k), np.int64))
    starts = range(0, len(samples), BATCH)
    for start in track(starts, len(starts), "scoring", "batches"):
        indices = range(start, min(start + BATCH, len(samples)))
        tiles = [samples[i] for i in indices]
        for index, (_, label), predicted in zip(indices, tiles, mapped(predictor, tiles), strict=True):
            total[samples.tiles[index].scene] += counted(label, predicted, k)
    return dict(total)


def mapped(predictor: Predictor, tiles: Sequence[Sample]) -> UInt8[ndarray, "n h w"]:
    """Return the class index of every pixel of some tiles, which the network is shown as in training."""
    images = np.stack([image for image, _ in tiles])
    return decided(predictor(images, np.stack([imaged(*tile) for tile in tiles])), predictor.card)


def decided(probabilities: Float32[ndarray, "n k h w"], card: ModelCard) -> UInt8[ndarray, "n h w"]:
    """Return the class index of every pixel: at the card's threshold for two classes, else the most probable."""
    binary = card.legend.binary
    classes: ndarray = probabilities[:, 1] >= card.threshold if binary else probabilities.argmax(axis=1)
    return classes.astype(np.uint8)


def counted(label: UInt8[ndarray, "h w"], predicted: UInt8[ndarray, "h w"], k: int) -> Confusion:
    """Return the confusion matrix of one tile, without its ignored pixels."""
    known = label != IGNORE
    pairs = label[known].astype(np.int64) * k + predicted[known]
    counts: ndarray = np.bincount(pairs, minlength=k * k)
    return counts.reshape(k, k)


def _plain(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in figures.items()}


def _row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (name, *(_figure(row[score]) for score in HEADLINES), f"{row['pixels']:,}")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
