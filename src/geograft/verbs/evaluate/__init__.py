"""`geograft evaluate`: a run and a split become scores with intervals; every pixel of the split counts once."""

from dataclasses import asdict, replace
from pathlib import Path

from geograft.card import ModelCard, tiles_of
from geograft.config import EvaluateConfig
from geograft.errors import InputError, SettingError
from geograft.files import refuse_existing, write_json
from geograft.geo.splitting.units import units_of
from geograft.geo.tilesets.tileset import Split, TileSet, check_fit
from geograft.learn.using.inference import Predictor
from geograft.verbs.evaluate.counting import count, decided, mapped
from geograft.verbs.evaluate.result import Evaluation
from geograft.verbs.evaluate.shapes import ShapeCounter, Wanted, class_index

__all__ = ["Evaluation", "decided", "evaluate", "mapped"]

DEFAULT = EvaluateConfig()


def evaluate(
    run: Path,
    split: Split = "test",
    tiles: Path | None = None,
    out: Path | None = None,
    against: Path | None = None,
    config: EvaluateConfig = DEFAULT,
) -> Evaluation:
    """Score a run on one split, with 95 % intervals, and write the scores as JSON to `out`.

    `tiles` is another tile set with the same classes and bands; by default the run's own. `out` is by default
    scores-SPLIT.json in the run, or scores-FOLDER-SPLIT.json for the tile set FOLDER; these are replaced. With
    `against`, another run is scored on the same tiles, and the differences have intervals of their own. Takes about as
    long as predicting the tiles, for each run. Memory: a few tiles, 16 kB a block, and the canvases of `shapes` where
    boundaries or objects are asked for.

    Raises:
        InputError: when the run or the tile set cannot be used, do not fit each other, or the split has no tile.
        SettingError: for a class of objects that is not there.
        OutputError: when `out` exists or cannot be written.
    """
    if out is not None:
        refuse_existing(out)
    predictor = Predictor.load(run)
    tile_set = TileSet.open(tiles or tiles_of(run))
    rival = None if against is None else _rival(against, predictor.card, tile_set)
    result = scored(run, predictor, tile_set, split, config)
    if rival is not None and against is not None:
        theirs = scored(against, rival, tile_set, split, config)
        result = replace(result, rival=theirs, notes=(*result.notes, *_strange(against, tile_set)))
    other = "" if tiles is None else f"{tile_set.folder.resolve().name}-"
    path = out or run / f"scores-{other}{split}.json"
    write_json(path, result.content(path.stem.removeprefix("scores-")))
    return result


def scored(run: Path, predictor: Predictor, tile_set: TileSet, split: Split, config: EvaluateConfig) -> Evaluation:
    """Return the scores of an opened run on one split of an opened tile set. Nothing is written.

    Raises:
        InputError: when they do not fit each other, or the split has no tile.
        SettingError: for a class of objects that is not there.
    """
    card = predictor.card
    check_fit(card, tile_set)
    tiles = tile_set.split(split)
    if not tiles:
        raise InputError(f"{tile_set.folder} has no {split} tiles. Choose another --split.")
    names = card.legend.names
    objects = class_index(config.objects, names)
    wanted = Wanted(len(names), config.boundary_m, objects, card.legend.overlapping)
    units = units_of(tile_set, split)
    shapes = ShapeCounter(wanted, tile_set, tiles, units)
    counts = count(predictor, tile_set, tile_set.samples(split, once=True, means=card.mean), units, shapes)
    chosen = split == "val" and card.calibrated
    notes = ("threshold and temperature were chosen on validation tiles: these scores flatter.",) if chosen else ()
    return Evaluation(run, split, tile_set.folder, card, len(tiles), counts, asdict(config), notes=notes)


def _rival(run: Path, card: ModelCard, tile_set: TileSet) -> Predictor:
    predictor = Predictor.load(run)
    check_fit(predictor.card, tile_set)
    if predictor.card.legend.names != card.legend.names:
        raise SettingError(f"--against {run} has the classes {predictor.card.legend.names}; give a run with the same.")
    return predictor


def _strange(run: Path, tile_set: TileSet) -> tuple[str, ...]:
    """Return a note when a run was trained on other tiles than it is scored on, for it may have seen these."""
    try:
        own = TileSet.open(tiles_of(run)).meta.fingerprint
    except InputError:
        own = ""
    if own == tile_set.meta.fingerprint:
        return ()
    return (f"{run} was trained on another tile set: make sure that it did not train on the ground scored here.",)
