"""`geograft show`: what a run is, from its files alone."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as record
from safetensors import SafetensorError
from safetensors.numpy import load

from geograft.bundle import BundleMember, Origin, TrainingData, read_manifest
from geograft.card import FEATURES_FILE, WEIGHTS, ModelCard, read_card, unfinished_notes
from geograft.config import describe_fault
from geograft.dataset.joined import open_run_tiles
from geograft.dataset.tileset import SPLITS, TileSet
from geograft.errors import InputError
from geograft.files import StrPath
from geograft.runs import is_bundle, local_run, run_file, run_files, to_runs
from geograft.text import format_table, join_names, pluralise

RANDOM = "random"
"""`weights_from` of a network without pretrained weights."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of batch norm's statistics, which are no parameters."""
LENIENT = ConfigDict(extra="ignore")


@record(frozen=True, config=LENIENT)
class Units:
    """The units of a confidence interval."""

    units: int
    unit: str


@record(frozen=True, config=LENIENT)
class Decision:
    """Threshold and temperature by which probabilities became classes."""

    threshold: float
    temperature: float
    thresholds: tuple[float, ...] = ()


@record(frozen=True, config=LENIENT)
class RunScores:
    """The headline of a scores-NAME.json."""

    name: str
    split: str
    tiles: str
    """Path of the tile set."""
    tiles_scored: int
    overall: dict[str, float | None]
    """By metric: of the positive class (binary), else means over the classes."""
    overall_intervals: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    interval: Units | None = None
    decision: Decision | None = None

    @property
    def dataset(self) -> str:
        """The name of the tile set."""
        return Path(self.tiles).name or self.tiles

    def precede(self, card: ModelCard) -> bool:
        """Return whether the run was calibrated after it was scored."""
        thresholds = card.output_thresholds if card.legend.overlapping else ()
        now = Decision(card.threshold, card.temperature, thresholds)
        return self.decision is not None and self.decision != now


@dataclass(frozen=True)
class Description:
    """What a run is."""

    run: Path
    card: ModelCard
    origin: Origin
    parameters: int
    weights_bytes: int
    scores: tuple[RunScores, ...]
    """Those of the test split first."""
    has_features: bool
    """Whether `geograft predict --applicability` works with it."""
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """The task in words."""
        legend = self.card.legend
        if legend.binary:
            return f"binary segmentation of {legend.names[1]}"
        return f"segmentation into {len(legend.names)} {'overlapping' if legend.overlapping else 'exclusive'} classes"

    @property
    def command(self) -> str:
        """The command that maps a raster with the run."""
        return f"geograft predict {self.run} RASTER --out MAP.tif{' --applicability' if self.has_features else ''}"

    def content(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        return {
            "run": str(self.run),
            "task": self.task,
            "card": self.card.content,
            **asdict(self.origin),
            "parameters": self.parameters,
            "weights_bytes": self.weights_bytes,
            "scores": [asdict(scores) for scores in self.scores],
            "applicability": self.has_features,
            "command": self.command,
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return the description as plain text."""
        parts = {
            "classes": _class_lines(self.card),
            "bands": _band_lines(self.card),
            "network": self._network_lines(),
            "training": self._training_lines(),
            "scores": self._score_lines(),
            "to map": [self.command],
            "notes": list(self.notes),
        }
        wide = max(map(len, parts))
        shown = [
            f"{name if number == 0 else '':{wide}}  {line}".rstrip()
            for name, lines in parts.items()
            for number, line in enumerate(filter(None, lines))
        ]
        return [f"{self.card.name}: {self.task}", *shown]

    def _network_lines(self) -> list[str]:
        model = self.card.model
        encoder = "" if model.architecture == "unet" else f" with encoder {model.encoder}"
        return [
            f"{model.architecture}{encoder}; {self.parameters:,} parameters, {self.weights_bytes / 1e6:.1f} MB",
            f"pretrained weights: {self.card.weights_from}; licence: {self.origin.weights_licence}",
        ]

    def _training_lines(self) -> list[str]:
        card = self.card
        epochs = f" of {card.epochs}" if card.epochs else ""
        return [
            _describe_data(self.origin.training_data),
            f"weights of epoch {card.epoch}{epochs}; {card.describe_calibration()}",
            ", ".join(f"{name} {version}" for name, version in card.versions.items()),
        ]

    def _score_lines(self) -> list[str]:
        if not self.scores:
            best = ", ".join(f"{name} {value:.3f}" for name, value in self.card.scores.items())
            return [f"of the validation tiles, in training: {best}" if best else "none", "none by `geograft evaluate`"]
        rows: list[tuple[str, ...]] = [("", "IoU", "95 % CI", "F1", "95 % CI", "")]
        for scores in self.scores:
            units = f" in {pluralise(scores.interval.units, scores.interval.unit)}" if scores.interval else ""
            values = (text for name in ("iou", "f1") for text in _score_cells(scores, name))
            rows.append((scores.name, *values, f"{pluralise(scores.tiles_scored, 'tile')}{units}"))
        return format_table(rows)


@dataclass(frozen=True)
class JsonText:
    """A description, to be printed as JSON."""

    description: Description

    def lines(self) -> list[str]:
        """Return the lines of an indented JSON object."""
        return json.dumps(self.description.content(), indent=2, ensure_ascii=False).splitlines()


def show(run: StrPath) -> Description:
    """Describe a run: classes, thresholds, bands, network, size of the training data, scores, licence of the weights.

    Only its files are read, and for a folder its tile set's table, if that exists; nothing is predicted.

    Raises:
        InputError: if the run cannot be read.
    """
    run = to_runs(run)[0]
    card = read_card(run)
    scores = sorted((_read_scores(file) for file in run_files(run, "scores-*.json")), key=lambda s: s.name != "test")
    return Description(
        run,
        card,
        origin_of(run, card, own_tile_set(run, card)),
        *_weights_size(run),
        tuple(scores),
        run_file(run, FEATURES_FILE).exists(),
        (*unfinished_notes((card,)), *_calibration_notes(card, scores)),
    )


def own_tile_set(run: Path, card: ModelCard, tiles: Path | None = None) -> TileSet | None:
    """Return the tile set that a run was trained on; None if it does not exist or has changed.

    Raises:
        InputError: if `tiles`, where it is said to be, is not it.
    """
    try:
        tile_set = open_run_tiles(run, tiles)
    except InputError:
        if tiles is not None:
            raise
        return None
    if tile_set.meta.fingerprint == card.data_fingerprint:
        return tile_set
    if tiles is not None:
        raise InputError(f"{tiles} is not the tile set of {run}: its images, labels or tiles differ. Omit --tiles.")
    return None


def origin_of(run: Path, card: ModelCard, tile_set: TileSet | None) -> Origin:
    """Return the size of a run's tile set and the licence of its pretrained weights, as far as they are known.

    Raises:
        InputError: if the run is a damaged bundle.
    """
    known = read_manifest(local_run(run)).origin if is_bundle(run) else Origin(weights_licence(card.weights_from))
    if tile_set is None:
        return known
    counts = (len(tile_set.split(split)) for split in SPLITS)
    return Origin(known.weights_licence, TrainingData(len(tile_set.scenes), *counts))


FILE_LICENCES = dict.fromkeys(("81611f290adc", "3884d75ca497", "aa79e9a0f02f", "d11c53097863"), "apache-2.0")
"""Licences of weights files by the first digits of their SHA-256: the four ONNX files of ukis-csmask 1.0.0."""


def weights_licence(weights_from: str) -> str:
    """Return the licence of pretrained weights, given where they came from as in a model card.

    That of weights from timm's hub is what timm records; "none" for random weights, "unknown" for files but those of
    FILE_LICENCES.

    >>> weights_licence("random"), weights_licence("file my.pth, sha256 0123456789ab")
    ('none', 'unknown')
    """
    source = weights_from.rpartition(", first ")[2]
    if source == RANDOM:
        return "none"
    file = re.fullmatch(r"file .*, sha256 (\w+)", source)
    if file:
        return FILE_LICENCES.get(file[1], "unknown")
    package = re.match(r"package (\w+)", source)
    if package:
        from geograft.networks.weights import package_licence  # noqa: PLC0415  (imports torch)

        return package_licence(package[1]) or "unknown"
    config, hub = None, re.match(r"hub [^/]+/([^,]+)", source)
    if hub:
        from timm import get_pretrained_cfg  # noqa: PLC0415  (imports torch)

        with suppress(RuntimeError):  # a name that this version of timm does not have
            config = get_pretrained_cfg(hub[1])
    return config.license or "unknown" if config else "unknown"


def _read_scores(file: Path | BundleMember) -> RunScores:
    try:
        return TypeAdapter(RunScores).validate_json(file.read_bytes())
    except ValidationError as error:
        fault = describe_fault(error)
        raise InputError(f"{file} cannot be read: {fault}. Write it again with `geograft evaluate`.") from error


def _calibration_notes(card: ModelCard, tables: Sequence[RunScores]) -> tuple[str, ...]:
    names = join_names(scores.name for scores in tables if scores.precede(card))
    return (f"{names}: scored with another threshold or temperature, before `geograft calibrate`.",) if names else ()


def _weights_size(run: Path) -> tuple[int, int]:
    """Return the number of parameters of a run, and the size of its weights in bytes."""
    file = run_file(run, WEIGHTS)
    try:
        content = file.read_bytes()
        tensors = load(content)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read: {error}. Copy the run again, or train it again.") from error
    return sum(tensor.size for name, tensor in tensors.items() if not name.endswith(STATISTICS)), len(content)


def _class_lines(card: ModelCard) -> list[str]:
    legend, used = card.legend, card.used_thresholds
    thresholds = [""] * (len(legend.names) - len(used)) + [f"from probability {value:.3f}" for value in used]
    rows = list(zip(legend.names, map(str, legend.values), thresholds, strict=True))
    mapped = [] if used else ["the most probable class is mapped"]
    return [
        *format_table([("", "value", "mapped"), *rows] if used else [("", "value"), *(r[:2] for r in rows)]),
        *mapped,
    ]


def _band_lines(card: ModelCard) -> list[str]:
    size, overlap = card.window
    pixel = f"pixels of {card.resolution_m:.3g} m" if card.resolution_m else "pixel size unknown"
    rules = {"auto": "nodata as in the raster", "any": "nodata in any band", "all": "nodata in all bands"}
    return [
        f"{', '.join(card.band_names[: card.bands])}: {card.dtype}, {pixel}",
        *(f"{index.name} = {index.formula}" for index in card.indices),
        f"windows of {size} pixels that overlap by {overlap}; invalid pixels: {rules[card.nodata]}",
    ]


def _describe_data(data: TrainingData | None) -> str:
    if data is None:
        return "size of the tile set unknown"
    tiles = f"{data.train_tiles:,} training, {data.val_tiles:,} validation and {data.test_tiles:,} test tiles"
    return f"{tiles} of {pluralise(data.scenes, 'scene')}"


def _score_cells(scores: RunScores, name: str) -> tuple[str, str]:
    value, interval = scores.overall.get(name), scores.overall_intervals.get(name)
    return "-" if value is None else f"{value:.3f}", f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else ""
