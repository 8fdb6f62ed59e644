"""`geograft suggest`: which tiles of unlabelled ground to label next, so that few labels teach a run the most.

From candidates to suggestions: which to label, in which order.

What `geograft suggest` returns, and how it reads.

Suggestions as a layer for a GIS: an outline a tile, the first to label in the strongest colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from geograft.card import ModelCard, read_card, tiles_of
from geograft.config import PredictConfig, SuggestConfig
from geograft.dataset.tileset import META, TileSet, check_fit
from geograft.errors import InputError, OutputError, SettingError
from geograft.files import refuse_existing
from geograft.geo.grid import Grid, Window
from geograft.geo.vectors.outlines import outlines
from geograft.geo.vectors.reader import Features
from geograft.geo.vectors.styles import Step, graduated, write_styled
from geograft.inference.embedding import load_encoder
from geograft.inference.uncertainty import Doubt
from geograft.mapping.plan import Job, planned
from geograft.mapping.pool import Candidate, Eyes, Ground, check_some_left, labelled_on, look
from geograft.metrics.applicability import KNOWN, Applicability
from geograft.metrics.selection import batch
from geograft.text import counted, table


@dataclass(frozen=True)
class Suggestion:
    """One tile to label."""

    rank: int
    """From 1 on: the order in which to label."""
    raster: int
    """Which of the rasters."""
    window: Window
    score: float
    """Share of all the doubt that it covers beyond the tiles before it."""
    doubt: float
    """Mean over its pixels, 0 to 1."""
    novelty: float | None
    """Distance to what the run was trained on, over the threshold of its area of applicability: outside above 1."""


def ranked(candidates: Sequence[Candidate], count: int) -> tuple[Suggestion, ...]:
    """Return the `count` candidates that are best labelled together, the first so many of which are the best so many.

    See `geograft.metrics.selection`: the pieces are the quarters of the tiles. The order of the candidates has no say.
    """
    owners = np.repeat(np.arange(len(candidates)), [len(one.unsure) for one in candidates])
    features = np.concatenate([one.looks for one in candidates])
    weights = np.concatenate([one.unsure for one in candidates])
    found = batch(features, weights, owners, count)
    chosen = [candidates[position] for position in found.positions]
    return tuple(
        Suggestion(rank, one.raster, one.window, float(gain), one.doubt, one.novelty)
        for rank, (one, gain) in enumerate(zip(chosen, found.gains, strict=True), start=1)
    )


LISTED = 10
"""Suggestions that are printed; the file has all."""


@dataclass(frozen=True)
class Suggestions:
    """What `suggest` wrote."""

    path: Path
    rasters: tuple[Path, ...]
    tiles: tuple[Suggestion, ...]
    """In the order in which to label them."""
    seen: int
    """Unlabelled tiles that were looked at."""
    labelled: int
    """Tiles left out, for they are labelled already."""
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the first suggestions as a table, and what to do with them."""
        return [
            f"{self.path}: {counted(len(self.tiles), 'tile')} to label, of {self.seen:,} that are not labelled"
            + (f" ({self.labelled:,} more are)" if self.labelled else ""),
            *table([("rank", "score", "uncertainty", "novelty", "row", "col", "raster"), *map(self._cells, self._top)]),
            *([f"and {len(self.tiles) - LISTED:,} more"] if len(self.tiles) > LISTED else []),
            f"Together they stand for {sum(one.score for one in self.tiles):.0%} of what the run is unsure of.",
            *(f"Note: {note}" for note in self.notes),
        ]

    @property
    def _top(self) -> tuple[Suggestion, ...]:
        return self.tiles[:LISTED]

    def _cells(self, one: Suggestion) -> tuple[str, ...]:
        novelty = "" if one.novelty is None else f"{one.novelty:.2f}"
        numbers = (f"{one.score:.1%}", f"{one.doubt:.3f}", novelty, f"{one.window.row:,}", f"{one.window.col:,}")
        return (str(one.rank), *numbers, self.rasters[one.raster].name)


LAYER = "suggestions"
COLOURS = ("#B2182B", "#D55E00", "#E69F00", "#C9B458")
"""From what to label first to what to label last."""


def check_suffix(path: Path) -> None:
    """Raise OutputError when `path` is no GeoPackage."""
    if path.suffix.lower() != ".gpkg":
        raise OutputError(f"{path}: suggestions are written as .gpkg. Choose this suffix.")


def write_suggestions(path: Path, suggestions: Sequence[Suggestion], rasters: Sequence[tuple[Path, Grid]]) -> None:
    """Write suggestions with their outlines, in the rasters' CRS, or in WGS 84 where they differ.

    Raises:
        OutputError: when it cannot be written.
    """
    names = [str(number) for number in range(len(rasters))]
    places = [(names[one.raster], one.window) for one in suggestions]
    shapes, crs = outlines(places, dict(zip(names, (grid for _, grid in rasters), strict=True)))
    columns: dict[str, Sequence[Any] | ndarray] = {
        "rank": np.array([one.rank for one in suggestions], np.int64),
        "score": np.array([one.score for one in suggestions], float),
        "uncertainty": np.array([one.doubt for one in suggestions], float),
        "novelty": np.array([np.nan if one.novelty is None else one.novelty for one in suggestions], float),
        "raster": [str(rasters[one.raster][0]) for one in suggestions],
    }
    for side in ("row", "col", "height", "width"):
        columns[side] = np.array([getattr(one.window, side) for one in suggestions], np.int64)
    write_styled(path, Features(shapes, columns), crs, LAYER, graduated("rank", _steps(len(suggestions))))


def _steps(count: int) -> list[Step]:
    """Return up to four steps of ranks 1 to `count`, as even as can be."""
    number = min(len(COLOURS), count)
    cuts = [count * i // number for i in range(number + 1)]
    return [
        Step(first + 0.5, last + 0.5, colour, f"{first + 1} to {last}")
        for first, last, colour in zip(cuts, cuts[1:], COLOURS, strict=False)
    ]


DEFAULT = SuggestConfig()


def suggest(
    run: Path | Sequence[Path],
    rasters: Sequence[Path],
    out: Path,
    config: SuggestConfig = DEFAULT,
    known: Path | None = None,
    aoi: Path | None = None,
) -> Suggestions:
    """Write which tiles of `rasters` to label next as a GeoPackage, the best first, and return them.

    A tile is good to label when the runs are unsure of it and when it looks like much else that they are unsure of, but
    not like what is suggested before it: see `geograft.metrics.selection`. Doubt is the mean over all runs, looks are
    those of the first. `rasters` may also be one tile set: then its images are gone through. Ground that lies in tiles
    of the tile set `known`, of any part, is not suggested; default: the tile set that was given or that the first run
    was trained on, where it is still there. `aoi` is a vector file: only what its polygons cover is suggested.

    The same runs, rasters and settings give the same suggestions on one machine, and fewer `tiles` the first of them.
    Costs about as much as a map by `predict` without overlap. Memory does not grow with the rasters.

    Raises:
        InputError: when a run cannot be used; when a raster does not fit it or cannot be read; when nothing is left to
            suggest.
        SettingError: for a device or a backend that is not there, and for a spread of one run without turns.
        OutputError: when `out` exists, is no .gpkg, or cannot be written.
    """
    refuse_existing(out)
    check_suffix(out)
    runs = (run,) if isinstance(run, Path) else tuple(run)
    _check_spread(config, runs)
    card = read_card(runs[0])
    given = _given(card, rasters)
    jobs = _jobs(card, given.rasters, config, aoi)
    labels = _known_tiles(runs[0], known, given.tile_set)
    grounds = [Ground(i, job, labelled_on(job.rasters[0], job.grid, labels)) for i, job in enumerate(jobs)]
    eyes = _eyes(runs, card, config)
    pool = look(eyes, grounds)
    check_some_left(given.rasters, pool.seen, pool.labelled)
    tiles = ranked(pool.kept, config.tiles)
    write_suggestions(out, tiles, [(job.rasters[0], job.grid) for job in jobs])
    notes = (*eyes.doubt.notes, *_notes(runs[0], eyes.known, labels))
    return Suggestions(out, given.rasters, tiles, pool.seen, pool.labelled, notes)


@dataclass(frozen=True)
class _Given:
    rasters: tuple[Path, ...]
    tile_set: TileSet | None = None


def _given(card: ModelCard, rasters: Sequence[Path]) -> _Given:
    """Return the rasters that are meant: those given, or the images of the tile set that was given."""
    sets = [path for path in rasters if (path / META).exists()]
    if not sets:
        return _Given(tuple(rasters))
    if len(rasters) > 1:
        raise InputError(f"{sets[0]} is a tile set: give it alone, or rasters only.")
    tile_set = TileSet.open(sets[0])
    check_fit(card, tile_set)
    return _Given(tuple(tile_set.image_path(scene) for scene in tile_set.scenes), tile_set)


def _jobs(card: ModelCard, rasters: Sequence[Path], config: SuggestConfig, aoi: Path | None) -> list[Job]:
    """Return what tiles are read from, a raster each; that which they would be mapped to has no part in it."""
    if not rasters:
        raise InputError("No raster was given. Name one or more, or a tile set.")
    settings = PredictConfig(bands=config.bands, resample=config.resample)
    return [planned(card, (raster,), raster.with_suffix(".tif"), settings, aoi)[0] for raster in rasters]


def _known_tiles(run: Path, known: Path | None, given: TileSet | None) -> TileSet | None:
    """Return the tile set whose ground is labelled; None where nobody knows."""
    if known is not None:
        return TileSet.open(known)
    if given is not None:
        return given
    try:
        return TileSet.open(tiles_of(run))
    except InputError:
        return None


def _eyes(runs: Sequence[Path], card: ModelCard, config: SuggestConfig) -> Eyes:
    doubt = Doubt.load(
        runs, config.doubt, tta=config.tta, device=config.device, backend=config.backend, batch_size=config.batch_size
    )
    path = runs[0] / KNOWN
    known = Applicability.read(path) if path.exists() else None
    return Eyes(doubt, load_encoder(runs[0], card, config.device), known, config.batch_size)


def _check_spread(config: SuggestConfig, runs: Sequence[Path]) -> None:
    if config.doubt == "spread" and config.tta == 1 and len(runs) == 1:
        raise SettingError(
            "doubt = 'spread' needs several answers to every pixel, and one run gives one. Give more runs "
            "(--ensemble), or let it see every tile turned (--tta 4)."
        )


def _notes(run: Path, known: Applicability | None, labels: TileSet | None) -> tuple[str, ...]:
    """Return what the user should know, a line each."""
    ground = f"{run} does not say which ground is labelled (its tile set is gone): give it with --known TILES."
    looks = f"{run} holds no {KNOWN}: how unlike its training the tiles look is not known, and novelty stays empty."
    return (*([] if labels else [ground]), *([] if known else [looks]))
