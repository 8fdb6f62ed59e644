"""The units of suggestions: how a worker collects the candidates in a square of tiles, and how units become one pool.

A unit is a square of whole tiles of one of the rasters. Its candidates are those of the whole raster there, to the bit
on a CPU (`geograft.mapping.pool.add_candidates`), and the best of all units are the best of their union.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from jaxtyping import Float32
from numpy import ndarray

from geograft.card import ModelCard
from geograft.dataset.tileset import INDEX, TileSet
from geograft.errors import InputError
from geograft.files import file_digest
from geograft.geo.grid import Window
from geograft.inference.backends import backend_device
from geograft.mapping.environment import Agreement, Environment, Sample, describe_environment
from geograft.mapping.plan import plan_windows
from geograft.mapping.pool import Candidate, Embedder, Pool, PoolRaster, add_candidates
from geograft.mapping.unit_ledger import UnitLedger
from geograft.mapping.units import SceneUnits, UnitGrid, UnitResult, plan_units
from geograft.mapping.worker import Proposal, new_job
from geograft.progress import progress_bar
from geograft.resume import READ_ERRORS, differences, save_arrays

# ------------------------------------------------------------------------------------------------------ pools as arrays

SIDES = ("row", "col", "height", "width")
FIELDS = ("raster", "uncertainty", "valid_fraction", "lot")
"""Fields of a candidate that are one number."""
LAYOUT: Mapping[str, tuple[Any, int]] = {
    "counts": (np.int64, 1),
    "raster": (np.int64, 1),
    "window": (np.int64, 2),
    "uncertainty": (np.float64, 1),
    "valid_fraction": (np.float64, 1),
    "predicted": (np.float64, 2),
    "dissimilarity": (np.float64, 1),
    "lot": (np.uint64, 1),
    "is_candidate": (np.bool_, 1),
    "is_sampled": (np.bool_, 1),
    "quarters": (np.int64, 1),
    "embeddings": (np.float32, 2),
    "quarter_uncertainty": (np.float64, 1),
}
"""The arrays of a pool, their dtypes and dimensions: a row for each tile, in the last two for each of its quarters."""


def pool_to_arrays(pool: Pool) -> dict[str, ndarray]:
    """Return a pool as arrays, from which `pool_from_arrays` makes it again, pruned."""
    candidates, sample = ({(one.raster, one.window): one for one in some} for some in (pool.candidates, pool.sample))
    tiles = dict(sorted((candidates | sample).items()))
    each = tuple(tiles.values())
    columns = {
        **{name: [getattr(one, name) for one in each] for name in (*FIELDS, "predicted")},
        "counts": [pool.unlabelled_tiles, pool.labelled_tiles],
        "window": [[getattr(one.window, side) for side in SIDES] for one in each],
        "dissimilarity": [np.nan if one.dissimilarity is None else one.dissimilarity for one in each],
        "is_candidate": [key in candidates for key in tiles],
        "is_sampled": [key in sample for key in tiles],
        "quarters": [len(one.quarter_uncertainty) for one in each],
        "embeddings": [row for one in each for row in one.embeddings],
        "quarter_uncertainty": [value for one in each for value in one.quarter_uncertainty],
    }
    arrays = {name: np.array(columns[name], dtype) for name, (dtype, _) in LAYOUT.items()}
    return {name: array if len(array) else array.reshape((0,) * LAYOUT[name][1]) for name, array in arrays.items()}


def pool_from_arrays(arrays: Mapping[str, ndarray]) -> Pool:
    """Return the pool that `pool_to_arrays` has turned into arrays, pruned.

    Raises:
        ValueError: if the arrays are not those of a pool.
        KeyError: if one is missing.
    """
    tables = {name: arrays[name] for name in LAYOUT}
    _check_tables(tables)
    ends = tables["quarters"].cumsum()[:-1]
    embeddings, quarters = (np.split(tables[name], ends) for name in ("embeddings", "quarter_uncertainty"))
    columns = {name: tables[name].tolist() for name in (*FIELDS, "window", "predicted", "dissimilarity")}
    each = [
        Candidate(
            **{name: columns[name][i] for name in FIELDS},
            window=Window(*columns["window"][i]),
            embeddings=embeddings[i],
            quarter_uncertainty=quarters[i],
            dissimilarity=None if np.isnan(columns["dissimilarity"][i]) else columns["dissimilarity"][i],
            predicted=tuple(columns["predicted"][i]),
        )
        for i in range(len(tables["lot"]))
    ]
    candidates, sample = ([each[i] for i in np.flatnonzero(tables[name])] for name in ("is_candidate", "is_sampled"))
    pool = Pool(candidates, sample, *tables["counts"].tolist())
    pool.prune()
    return pool


def _check_tables(tables: Mapping[str, ndarray]) -> None:
    """Raise ValueError unless arrays have the dtypes, shapes and ranges of those of a pool."""
    for name, (dtype, dimensions) in LAYOUT.items():
        if tables[name].dtype != dtype or tables[name].ndim != dimensions:
            raise ValueError(f"{name} has {tables[name].shape} {tables[name].dtype}")
    tiles, quarters = len(tables["lot"]), len(tables["embeddings"])
    lengths = dict.fromkeys(LAYOUT, tiles) | {"counts": 2, "embeddings": quarters, "quarter_uncertainty": quarters}
    wrong = [name for name, length in lengths.items() if len(tables[name]) != length]
    if wrong:
        raise ValueError(f"{wrong[0]} has {len(tables[wrong[0]])} rows, not {lengths[wrong[0]]}")
    if tiles and tables["window"].shape[1] != len(SIDES):
        raise ValueError(f"window has {tables['window'].shape[1]} columns, not {len(SIDES)}")
    if not ((tables["quarters"] >= 1) & (tables["quarters"] <= 4)).all() or tables["quarters"].sum() != quarters:
        raise ValueError("quarters are not those of the embeddings")
    for name in LAYOUT:
        signed, missing = name == "embeddings", name == "dissimilarity"
        known = tables[name][~np.isnan(tables[name])] if missing else tables[name]
        if not np.isfinite(known).all() or not (signed or (known >= 0).all()):
            raise ValueError(f"{name} has values out of range")


# --------------------------------------------------------------------------------------------------------- in one unit


def plan_pool_units(raster: PoolRaster, embedder: Embedder) -> UnitGrid:
    """Return the units of a raster, of whole tiles. They depend on its size, the tiles and the windows alone."""
    model = embedder.pixels.model
    lanes = plan_windows(raster.source.mosaic, model.card, model.settings, model.layers).lanes
    return plan_units(lanes.tiles, embedder.tile_px, block_px=1)


@dataclass(frozen=True)
class PoolUnitWriter:
    """Collects the candidates of the units of rasters."""

    embedder: Embedder
    rasters: tuple[PoolRaster, ...]
    labels: TileSet | None
    """The tile set whose tiles are labelled."""
    grids: tuple[UnitGrid, ...]
    """The units of each raster."""
    states: dict[str, Any]
    """Those of the inputs when the job was planned (`read_states`)."""
    channels: int
    """Length of an embedding."""

    @property
    def units(self) -> SceneUnits:
        """The units of all rasters."""
        return SceneUnits(tuple(map(len, self.grids)))

    def write(self, index: int, scratch: Path, advance: Callable[[float], None]) -> UnitResult:
        """Collect the candidates of a unit; see `geograft.mapping.worker.UnitWriter`. Memory: as `collect_candidates`.

        A unit without a tile has no file.
        """
        units = self.units
        scene, number = units.place(index)
        raster, pool = self.rasters[scene], Pool()
        tiles, pool.labelled_tiles = raster.unlabelled(self.embedder.tile_px, self.grids[scene].window(number))
        add_candidates(pool, self.embedder, raster, tiles, lambda count: advance(count / len(tiles)))
        self._check([scene])
        pool.prune()
        if pool.unlabelled_tiles or pool.labelled_tiles:
            save_arrays(scratch / f"{units.name(index)}.npz", pool_to_arrays(pool))
        return UnitResult(len(tiles))

    def check_unchanged(self) -> None:
        """Raise InputError if a raster or the labelled area has changed since the job was planned."""
        self._check(range(len(self.rasters)))

    def _check(self, scenes: Sequence[int]) -> None:
        before = self.states | {"rasters": [self.states["rasters"][scene] for scene in scenes]}
        changed = differences(before, read_states([self.rasters[scene] for scene in scenes], self.labels))
        if changed:
            raise InputError(
                f"The rasters or the labelled tiles changed while they were read: {changed[0]}. Start a new job once "
                "they no longer change."
            )


def read_states(rasters: Sequence[PoolRaster], labels: TileSet | None) -> dict[str, Any]:
    """Return the states of rasters and of the tile set whose tiles are labelled, from which a change is recognised.

    Raises:
        InputError: if a file is missing.
    """
    folders = labels.folders if labels else ()
    try:
        indices = [{"path": str(folder.resolve()), "digest": file_digest(folder / INDEX)} for folder in folders]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return {"rasters": [state for raster in rasters for state in raster.source.mosaic.states()], "labels": indices}


# ------------------------------------------------------------------------------------------------------------- the job


@dataclass(frozen=True)
class PoolSample:
    """What the networks compute for the first windows, in which workers must agree."""

    layers: Sample
    features: Float32[ndarray, "m d"]
    """Features of the cells of frames cut from these windows."""

    @classmethod
    def compute(cls, embedder: Embedder) -> "PoolSample":
        """Predict the windows of the sample, and encode frames of them.

        Raises:
            InputError: for NaN.
        """
        windows, _ = embedder.pixels.sample
        repeats, side = -(-embedder.tile_px // windows.shape[-1]), embedder.tile_px
        frames = np.ascontiguousarray(np.tile(windows, (1, 1, repeats, repeats))[..., :side, :side])
        features, _ = embedder.encoder(frames, np.ones((len(frames), side, side), bool))
        return cls(Sample.compute(embedder.pixels.predictor, embedder.pixels.sample), features)

    def to_bytes(self) -> bytes:
        """Return the content of its file. Equal samples have equal content."""
        file = io.BytesIO()
        np.savez_compressed(file, levels=self.layers.levels, features=self.features)
        return file.getvalue()

    def agreement(self, content: bytes, card: ModelCard) -> Agreement:
        """Compare with the file of the job's first worker, by the classes and thresholds of a card.

        The difference is the largest of the layers and, relative to the largest feature, of the features.

        Raises:
            InputError: if the file is not that of a sample.
        """
        found = Sample.from_bytes(content, self.layers.levels.shape).agreement(self.layers, card)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                before = arrays["features"]
        except READ_ERRORS as error:
            raise InputError(f"it cannot be read ({error})") from error
        if before.shape != self.features.shape or before.dtype != self.features.dtype:
            raise InputError(f"it has features of {before.shape} {before.dtype}, not {self.features.shape} float32")
        largest = float(np.abs(self.features).max(initial=0)) or 1.0
        apart = float(np.nan_to_num(np.abs(before - self.features), nan=np.inf).max(initial=0)) / largest
        return replace(found, difference=max(found.difference, apart))


def propose_pool(
    embedder: Embedder,
    rasters: tuple[PoolRaster, ...],
    labels: TileSet | None,
    origin: Mapping[str, Any],
    device: str,
) -> Proposal[PoolUnitWriter]:
    """Return the job of suggestions as this process would start it.

    `origin` has the runs and settings, and the backend; the states of the other inputs are added.
    """
    grids = tuple(plan_pool_units(raster, embedder) for raster in rasters)
    sample = PoolSample.compute(embedder)
    states = read_states(rasters, labels)
    writer = PoolUnitWriter(embedder, rasters, labels, grids, states, sample.features.shape[1])
    whole = {**origin, **states, "unit_px": [grid.unit_px for grid in grids]}
    content, card = sample.to_bytes(), embedder.pixels.model.card
    job = new_job("suggest", whole, writer.units, _environment(embedder, device), content)
    return Proposal(job, lambda _: writer, content, lambda first: sample.agreement(first, card))


def _environment(embedder: Embedder, device: str) -> Environment:
    predictor = embedder.pixels.predictor
    libraries = {"numpy": np.__version__, "GEOS": shapely.geos_version_string, "GDAL": rasterio.__gdal_version__}
    used = backend_device(predictor.backend, device)
    return describe_environment(predictor.backend, predictor.precision, used, libraries)


# ------------------------------------------------------------------------------------------------------------ all units


def merge_units(ledger: UnitLedger, writer: PoolUnitWriter, scratch: Path) -> Pool:
    """Return the pool of all units. Their order does not matter. Memory: as `collect_candidates`.

    Raises:
        InputError: if a file of a unit is missing, damaged or not the one of its receipt.
    """
    pool, units = Pool(), writer.units
    with progress_bar("merging", len(units), "units") as bar:
        for index in range(len(units)):
            path = ledger.unit_file(units.name(index), ".npz", scratch)
            if path is not None:
                pool.merge(_read_unit(path, index, writer))
            bar.advance(1)
    pool.prune()
    return pool


def _read_unit(path: Path, index: int, writer: PoolUnitWriter) -> Pool:
    scene, number = writer.units.place(index)
    part, classes = writer.grids[scene].window(number), len(writer.embedder.pixels.model.card.legend.names)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            pool = pool_from_arrays(arrays)
        for one in (*pool.candidates, *pool.sample):
            if one.raster != scene or one.window.intersection(part) != one.window:
                raise ValueError(f"{one.window} is not in the unit")
            if one.embeddings.shape[1] != writer.channels or len(one.predicted) != classes:
                raise ValueError(f"embeddings of {one.embeddings.shape[1]} and {len(one.predicted)} classes")
    except READ_ERRORS as error:
        raise InputError(
            f"{path} is corrupt: {error}. Remove it and its receipt, and give the command again."
        ) from error
    return pool
