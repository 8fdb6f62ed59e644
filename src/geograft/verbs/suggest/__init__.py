"""`geograft suggest`: which tiles of unlabelled ground to label next, so that few labels teach a run the most."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geograft.applicability import KNOWN, Applicability
from geograft.card import ModelCard, read_card, tiles_of
from geograft.config import PredictConfig, SuggestConfig
from geograft.errors import InputError, SettingError
from geograft.files import refuse_existing
from geograft.geo.tilesets.tileset import META, TileSet, check_fit
from geograft.learn.using.doubt import Doubt
from geograft.learn.using.known import load_encoder
from geograft.verbs.predict.plan import Job, planned
from geograft.verbs.suggest.labelled import check_some_left, labelled_on
from geograft.verbs.suggest.layer import check_suffix, write_suggestions
from geograft.verbs.suggest.looking import Eyes, Ground, look
from geograft.verbs.suggest.ranking import ranked
from geograft.verbs.suggest.result import Suggestions

__all__ = ["Suggestions", "suggest"]

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
    not like what is suggested before it: see `geograft.selection`. Doubt is the mean over all runs, looks are
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
