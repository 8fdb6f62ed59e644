"""What is scored, and scores by units: some cells of a split are counted at a time, in any order, then all are joined.

A unit is some whole cells of one scene. Its tiles are predicted with the windows of the whole scene, and what is
counted in a cell (pixels, boundaries and objects) depends on its own tiles alone: so the joined counts are those of one
process, to the bit.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from geograft.config import EvaluateConfig
from geograft.dataset.joined import check_fit
from geograft.dataset.places import known_scenes_in_place
from geograft.dataset.tileset import INDEX, META, Samples, Split, Tile, TileSet
from geograft.dataset.units import Units, units_of
from geograft.errors import InputError
from geograft.files import json_digest
from geograft.geo.rasters.opening import raster_state
from geograft.inference.backends import backend_device
from geograft.mapping.environment import NO_DIFFERENCE, Agreement, Sample, describe_environment
from geograft.mapping.held_out import load_predictors
from geograft.mapping.models import RunModel
from geograft.mapping.places import refuse_adapted_tiles, refuse_used_tiles
from geograft.mapping.plan import runs_origin
from geograft.mapping.scoring import SplitCounts, choose_samples, count_split
from geograft.mapping.shapes import ShapeConfig, ShapeCounter, object_class_index, pixel_sizes
from geograft.mapping.unit_ledger import JOB, Job, UnitLedger
from geograft.mapping.units import MIN_UNITS, SceneUnits, UnitResult
from geograft.mapping.worker import Proposal, new_job
from geograft.metrics.confusion import ConfusionScheme
from geograft.resume import READ_ERRORS, save_arrays

UNIT_TILES, MIN_UNIT_TILES = 64, 8
"""Tiles of a unit, about, and those that a unit of a small split has at least (see `MIN_UNITS`); a cell is not divided,
however many it has."""


@dataclass(frozen=True)
class ScoreTask:
    """What is scored: one run, or the mean of several, on the tiles of one split."""

    model: RunModel
    tile_set: TileSet
    split: Split
    config: EvaluateConfig
    tiles: tuple[Tile, ...]
    units: Units
    """The units that confidence intervals resample, and their cells."""
    shapes: ShapeConfig

    @classmethod
    def plan(cls, model: RunModel, tile_set: TileSet, split: Split, config: EvaluateConfig) -> "ScoreTask":
        """Return what is scored. Opens the masks, reads no pixel.

        Raises:
            InputError: when run and tile set do not match, the split has no tiles, or boundaries are to be scored where
                a scene is not georeferenced.
            SettingError: when the class of objects does not exist, or the run or its place was fitted to the tiles.
        """
        card = model.card
        check_fit(card, tile_set)
        tile_set.check_masks()
        tiles = tile_set.split(split)
        if not tiles:
            raise InputError(f"{tile_set.title} has no {split} tiles. Choose another --split.")
        for run in model.runs if config.place else ():
            refuse_used_tiles(run, config.place, tile_set, tiles)
        for run in model.runs if tile_set.meta.fingerprint != card.data_fingerprint else ():
            refuse_adapted_tiles(run, tile_set, tiles)
        names = card.legend.names
        objects = object_class_index(config.objects, names)
        cleaning = card.cleaning if card.cleaning and card.cleaning.objects == config.objects else None
        shapes = ShapeConfig(len(names), config.boundary_m, objects, card.legend.overlapping, cleaning)
        if config.boundary_m:
            pixel_sizes(tile_set, tiles)
        return cls(model, tile_set, split, config, tiles, units_of(tile_set, split), shapes)

    @cached_property
    def samples(self) -> Samples:
        """The tiles with their labels, each pixel in one tile only."""
        return self.tile_set.samples(self.split, unique_pixels=True, means=self.model.card.mean)

    @property
    def scheme(self) -> ConfusionScheme:
        """How pixels are counted."""
        return ConfusionScheme.from_legend(self.model.card.legend)

    def count(self, cells: range | None = None, advance: Callable[[], None] | None = None) -> SplitCounts:
        """Return the counts of some of the cells, by default of all, whose progress is then shown.

        `advance` is called after each tile.

        Raises:
            InputError: if a run, an image or a mask cannot be used.
            SettingError: if the device or the backend is not available.
        """
        inside = np.zeros(len(self.units.cells), bool)
        inside[slice(None) if cells is None else slice(cells.start, cells.stop)] = True
        samples = choose_samples(self.samples, np.flatnonzero(inside[self.units.cell_of]).tolist())
        units = self.units.part(inside)
        shapes = ShapeCounter(self.shapes, self.tile_set, samples.tiles, units)
        return count_split(self.model, self.tile_set, samples, units, shapes, advance)

    def blank(self) -> SplitCounts:
        """Return counts of all cells that are 0."""
        counts = SplitCounts(self.units, self.scheme)
        counts.shapes = ShapeCounter(self.shapes, self.tile_set, self.tiles, self.units).counts()
        return counts


def plan_score_units(units: Units) -> tuple[tuple[range, ...], SceneUnits]:
    """Return the cells of each unit, consecutive ones of one scene, and the units by scene.

    They depend on the tiles alone, never on the number of workers.
    """
    tiles = np.bincount(units.cell_of, minlength=len(units.cells)).tolist()
    limit = min(UNIT_TILES, max(MIN_UNIT_TILES, -(-sum(tiles) // MIN_UNITS)))
    parts: dict[str, list[range]] = defaultdict(list)
    held = 0
    for index, cell in enumerate(units.cells):
        own = parts[cell.scene]
        if own and held < limit:
            own[-1] = range(own[-1].start, index + 1)
            held += tiles[index]
        else:
            own.append(range(index, index + 1))
            held = tiles[index]
    return tuple(part for own in parts.values() for part in own), SceneUnits(tuple(map(len, parts.values())))


@dataclass(frozen=True)
class ScoreUnitWriter:
    """Counts the units of one split."""

    task: ScoreTask
    parts: tuple[range, ...]
    """The cells of each unit."""
    units: SceneUnits
    scenes: tuple[dict[str, Any], ...]
    """The states of images and masks when the job was planned (`scene_states`)."""
    files: tuple[tuple[int, int], ...]
    """The same of the files of the tile set (`_file_states`)."""

    def write(self, index: int, scratch: Path, advance: Callable[[float], None]) -> UnitResult:
        """Count a unit; see `geograft.mapping.worker.UnitWriter`. Memory: as `evaluate`."""
        cells = self.parts[index]
        tiles = int(np.isin(self.task.units.cell_of, cells).sum())
        counts = self.task.count(cells, lambda: advance(1 / tiles))
        scene = self.task.units.cells[cells.start].scene
        self._check([one for one in self.scenes if one["scene"] == scene])
        save_arrays(scratch / f"{self.units.name(index)}.npz", count_arrays(counts))
        return UnitResult(tiles, counts.scheme.pixels(counts.total))

    def check_unchanged(self) -> None:
        """Raise InputError if the tile set, an image or a mask has changed since the job was planned."""
        self._check(self.scenes)

    def _check(self, scenes: Iterable[dict[str, Any]]) -> None:
        tile_set = self.task.tile_set
        changed = [tile_set.title] if _file_states(tile_set) != self.files else []
        changed += [one["scene"] for one in scenes if scene_state(tile_set, one["scene"]) != one]
        if changed:
            raise InputError(
                f"{changed[0]} changed while it was read. Start a new job once the tile set no longer changes."
            )

    def join(self, ledger: UnitLedger, scratch: Path) -> SplitCounts:
        """Return the counts of all units. Memory: as `evaluate`.

        Raises:
            InputError: if a file of a unit is missing, damaged or not the one of its receipt.
        """
        counts = self.task.blank()
        whole = count_arrays(counts)
        for index, cells in enumerate(self.parts):
            name = self.units.name(index)
            path = ledger.unit_file(name, ".npz", scratch)
            try:
                _paste(whole, cells, path)
            except READ_ERRORS as error:
                raise InputError(
                    f"{ledger.out}: the counts of unit {name} are not those of this job ({error}). Remove its file and "
                    "its receipt, and give the command of the workers again."
                ) from error
        return counts


def count_arrays(counts: SplitCounts) -> dict[str, ndarray]:
    """Return the arrays of counts by name, with one row per cell."""
    arrays = {name: getattr(counts, name) for name in ("confusion", "probability", "reliability", "squared_error")}
    shapes = {name: getattr(counts.shapes, name, None) for name in ("boundary", "objects")}
    return {name: array for name, array in (arrays | shapes).items() if array is not None and len(array)}


def _paste(whole: dict[str, ndarray], cells: range, path: Path | None) -> None:
    """Copy the counts of a unit's file to those of its cells."""
    if path is None:
        raise ValueError("there are none")
    with np.load(path, allow_pickle=False) as arrays:
        for name, array in whole.items():
            part, there = array[cells.start : cells.stop], arrays[name]
            if there.shape != part.shape or there.dtype != part.dtype:
                raise ValueError(f"{name} is {there.dtype} {there.shape}, not {part.dtype} {part.shape}")
            part[...] = there


# -------------------------------------------------------------------------------------------------------------- the job


def propose_scores(task: ScoreTask) -> Proposal[ScoreUnitWriter]:
    """Return the job of a split's scores as this process would start it. Loads the networks."""
    predictor, windows = load_predictors(task.model, task.tile_set, task.tiles)
    sample = None if windows is None else Sample.compute(predictor, windows)
    content = b"" if sample is None else sample.to_bytes()
    device = backend_device(predictor.backend, task.config.device)
    environment = describe_environment(predictor.backend, predictor.precision, device, {"numpy": version("numpy")})
    parts, units = plan_score_units(task.units)
    scenes = tuple(scene_state(task.tile_set, name) for name in dict.fromkeys(cell.scene for cell in task.units.cells))
    chosen = {"backend": predictor.backend, "precision": predictor.precision, "notes": list(task.model.notes)}
    job = new_job("evaluate", _origin(task) | {"scenes": list(scenes)} | chosen, units, environment, content)
    writer = ScoreUnitWriter(task, parts, units, scenes, _file_states(task.tile_set))

    def compare(first: bytes) -> Agreement:
        if sample is None:
            return NO_DIFFERENCE
        return Sample.from_bytes(first, sample.levels.shape).agreement(sample, task.model.card)

    return Proposal(job, lambda found: writer, content, compare)


def _origin(task: ScoreTask) -> dict[str, Any]:
    """Return what determines the scores, but for pixels, labels and the backend."""
    model, tile_set = task.model, task.tile_set
    # Where images are may differ between machines.
    scenes = tuple(replace(scene, image=scene.name) for scene in tile_set.meta.scenes)
    known = known_scenes_in_place(model.runs, tile_set, task.split)
    return {
        **runs_origin(model.runs, task.config),
        "tiles": {
            "path": tile_set.title,
            "set": json_digest(asdict(replace(tile_set.meta, scenes=scenes, masks="masks"))),
            "tiles": json_digest([tile.content for tile in task.tiles]),
        },
        "split": task.split,
        "settings": asdict(task.config),
        "scenes_in_place": None if known is None else sorted(known),
    }


def scene_state(tile_set: TileSet, scene: str) -> dict[str, Any]:
    """Return the state of a scene's image and mask (`raster_state`)."""
    paths = {"image": tile_set.image_path(scene), "mask": tile_set.mask_path(scene)}
    return {"scene": scene} | {what: raster_state(path) for what, path in paths.items()}


def _file_states(tile_set: TileSet) -> tuple[tuple[int, int], ...]:
    """Return size and modification time of the files of a tile set; (0, 0) for one that is not there."""
    paths = [folder / name for folder in tile_set.folders for name in (META, INDEX)]
    states = [path.stat() if path.exists() else None for path in paths]
    return tuple((state.st_size, state.st_mtime_ns) if state else (0, 0) for state in states)


def notes_of_job(ledger: UnitLedger, job: Job) -> tuple[str, ...]:
    """Return the remarks of the first worker's networks, which are those of the job.

    Raises:
        InputError: if they were edited.
    """
    notes = job.origin.get("notes")
    if not isinstance(notes, Sequence) or isinstance(notes, str) or not all(isinstance(note, str) for note in notes):
        raise InputError(f"{ledger.out}/{JOB} is corrupt: origin.notes. Remove {ledger.out} to start over.")
    return tuple(notes)
