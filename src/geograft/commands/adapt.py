"""`geograft adapt`: train a run further on a few labelled tiles of another place, without forgetting its own.

The tiles are divided into folds. A model for each fold, trained without its tiles, scores them; only if these scores
are better than those of the run itself, a last model is trained on all tiles and becomes the adapted run.
"""

import shutil
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy import ndarray

from geograft.card import STATE, TILES_FILE, WEIGHTS, ModelCard, read_card, unfinished_notes
from geograft.commands.evaluate import score_split
from geograft.commands.rehearsal import adaptation_recipe, choose_rehearsal, step_tiles
from geograft.commands.train import holds_run, train_tile_set
from geograft.config import AdaptConfig, EvaluateConfig, InferenceConfig, Recipe
from geograft.dataset.folds import TileFold, derived_fingerprint, independent_units, plan_tile_folds, write_derived_set
from geograft.dataset.joined import TileSetPaths, check_fit, join_tile_sets, open_run_tiles
from geograft.dataset.tileset import Split, TileSet
from geograft.dataset.units import sum_by_name
from geograft.errors import InputError, OutputError
from geograft.files import (
    StrPath,
    atomic_update,
    optional_path,
    refuse_existing,
    scratch_path,
    write_json,
    write_text,
)
from geograft.locks import lock_output
from geograft.mapping.adaptation import ADAPTED, FITTED, RUN, PlaceScores, TileCounts, count_tiles
from geograft.mapping.models import RunModel
from geograft.mapping.places import (
    ADAPTATION,
    Adaptation,
    Place,
    count_used,
    place_name,
    refuse_adapted_tiles,
    used_tiles,
)
from geograft.mapping.run_calibration import UNCALIBRATED, fit_place
from geograft.metrics.calibration import MIN_CERTAINTY
from geograft.metrics.confusion import ConfusionScheme
from geograft.progress import announce
from geograft.resume import (
    READ_ERRORS,
    check_same_origin,
    create_ledger,
    keep_ledger_on_error,
    read_origin,
    remove_ledger,
    save_arrays,
    to_json_types,
    unreadable_error,
)
from geograft.runs import run_file_digest, run_location
from geograft.text import join_names, pluralise

DEFAULT = AdaptConfig()
MIN_TILES = 3
FINAL = "run"
TILES = "tiles"
"""Folders of the last training and of the tile sets, in the partial result."""


@dataclass(frozen=True)
class AdaptedRun:
    """Result of `adapt`: the scores before and after, and the adapted run, if it is better."""

    target: PlaceScores
    """Of the new tiles, each scored by a model that was not trained on it."""
    source: PlaceScores | None = None
    """Of the held-out tiles of the run's own tile set; None without them, or without an adapted run."""
    run: Path | None = None
    """None if the adapted models are not better."""
    card: ModelCard | None = None
    own_place: Place | None = None
    """The place of the run that was adapted, with thresholds of its own; None without validation tiles of it."""
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the output of the command line."""
        sure = f"better in {100 * self.target.certainty:.0f} % of the bootstrap samples"
        return [
            *self.target.lines(),
            *(self.source.lines() if self.source else []),
            f"In brackets: 95 % confidence interval over {self.target.description}"
            + (f", and of its own place over {self.source.description}. " if self.source else ". ")
            + self.target.warning,
            *(f"Note: {note}" for note in self.notes),
            *(
                [f"{ADAPTED}: {sure} of the new tiles", *self._threshold_lines(self.card), f"run: {self.run}"]
                if self.card
                else self._reason(sure)
            ),
        ]

    def _threshold_lines(self, card: ModelCard) -> list[str]:
        names = card.legend.names if card.legend.overlapping else card.legend.names[-1:]
        own = self.own_place
        places = [f"; {value:.3f} with --place {own.name}" for value in own.thresholds] if own else [""] * len(names)
        return [
            f"threshold of {name}: {value:.3f}{place}"
            for name, value, place in zip(names, card.used_thresholds, places, strict=False)
        ]

    def _reason(self, sure: str) -> list[str]:
        before = self.target.best_before
        advice = " `geograft calibrate RUN --place-tiles TILES` fits the threshold." if before == FITTED else ""
        return [
            f"No run was written: on tiles that they were not trained on, the adapted models are {sure} than "
            f"{before}, and {100 * MIN_CERTAINTY:.0f} % are needed. Label more tiles.{advice}"
        ]


@dataclass(frozen=True)
class _Job:
    """A run to adapt, the new tiles, and the rehearsal."""

    run: Path
    card: ModelCard
    tiles: TileSet
    source: TileSet | None
    rehearsal: tuple[int, ...]
    """Positions of the rehearsal tiles among the training tiles of the source."""
    folds: tuple[TileFold, ...]
    config: AdaptConfig
    recipe: Recipe
    out: Path

    @property
    def part(self) -> Path:
        """The folder of the partial result."""
        return scratch_path(self.out)

    @property
    def origin(self) -> dict[str, Any]:
        """What the partial result depends on, as JSON types."""
        trained = {
            name: value for name, value in asdict(self.recipe.train).items() if name not in ("workers", "device")
        }
        content = {
            "run": run_file_digest(self.run, WEIGHTS),
            "tiles": self.tiles.meta.fingerprint,
            "source": self.source.meta.fingerprint if self.source else "",
            "settings": asdict(self.config),
            "train": trained,
        }
        return to_json_types(content)

    def inference(self) -> InferenceConfig:
        """Return how all maps are predicted: with torch, as exporting a graph takes longer than these tiles."""
        return InferenceConfig(backend="torch", device=self.config.device)


def adapt(
    run: StrPath,
    tiles: StrPath,
    out: StrPath,
    config: AdaptConfig = DEFAULT,
    source: StrPath | None = None,
) -> AdaptedRun:
    """Train a run further on the labelled tiles of another place, and write the adapted run to `out` if it is better.

    All tiles of `tiles` are used, whatever their split, from three on. Training starts from the weights of the run,
    with the settings of its recipe, for about `config.steps` steps; a fraction `config.rehearsal` of the tiles is
    drawn from the training tiles of the run's own tile set, or of `source` if that was moved. First a model is trained
    for each fold of the new tiles, without the fold's tiles and those nearer than the buffer, and scores the fold,
    with thresholds chosen on the other folds. The scores are compared with those of the run itself, and of the run
    with thresholds that are fitted in the same way. If the IoU is not higher than both, also in 80 % of the bootstrap
    samples of the scenes or blocks, nothing is written. Otherwise a model is trained on all tiles, with the thresholds
    chosen on all folds, limited to 0.1 to 0.9 for fewer than 30 tiles. For its own place, thresholds are fitted to the
    validation tiles of the source: they are a place of the adapted run (`geograft predict --place`).

    The weights of each model are an average of those before and after its training (`config.start_fraction`).

    `run` does not change. Resumable: the same call continues an interrupted one, with the same result to the bit.

    Raises:
        InputError: when the run or a tile set is invalid, they do not match, there are fewer than three tiles, or none
            with the class; when the run was trained on the tiles already.
        OutputError: when `out` exists or cannot be written, or another process writes it.
        WeightsError, SettingError: as in `train`.
    """
    run, tiles, out, source = Path(run), Path(tiles), Path(out), optional_path(source)
    with lock_output(out):
        refuse_existing(out)
        job = _open_job(run, tiles, out, config, source)
        before = read_origin(job.part)
        if before is None:
            create_ledger(job.part, {"origin": job.origin, "complete": False})
        else:
            check_same_origin(job.part, "an adaptation", before, job.origin)
        with keep_ledger_on_error(job.part, lambda: _describe_progress(job)):
            return _adapt(job)


def _open_job(run: Path, tiles: Path, out: Path, config: AdaptConfig, given: Path | None) -> _Job:
    card, target = read_card(run), TileSet.open(tiles)
    check_fit(card, target)
    target.check_masks()
    _check_tiles(target)
    refuse_adapted_tiles(run, target, target.tiles)
    source = _open_source(run, card, given, config)
    rehearsal: tuple[int, ...] = ()
    if source is not None:
        _refuse_shared(run, source, target)
        if config.rehearsal:
            join_tile_sets([target, *(source.members or (source,))])
            rehearsal = choose_rehearsal(source, len(target.tiles), config, step_tiles(run))
    recipe = adaptation_recipe(run, config, len(target.tiles), len(rehearsal))
    folds = plan_tile_folds(target, config.folds, config.seed)
    return _Job(Path(run_location(run)), card, target, source, rehearsal, folds, config, recipe, out)


def _check_tiles(tile_set: TileSet) -> None:
    if len(tile_set.tiles) < MIN_TILES:
        raise InputError(
            f"{tile_set.folder} has {pluralise(len(tile_set.tiles), 'tile')}; {MIN_TILES} or more are needed to tell "
            "whether an adapted run is better. Label more tiles."
        )
    legend = tile_set.meta.legend
    present = np.array([tile.class_fractions for tile in tile_set.tiles]).max(axis=0) > 0
    wanted = present.any() if legend.overlapping else present[1:].any() if legend.binary else present.sum() > 1
    if not wanted:
        names = join_names(legend.names if legend.overlapping else legend.names[1:])
        raise InputError(f"{tile_set.folder} has no tile with {names}. Label tiles that show it.")


def _open_source(run: Path, card: ModelCard, given: Path | None, config: AdaptConfig) -> TileSet | None:
    try:
        source = open_run_tiles(run, given)
    except InputError as error:
        if given is None and not config.rehearsal:
            return None
        words = "" if given else " Give --source with the path of its tile set, or --rehearsal 0 to train without it."
        raise InputError(f"the tiles of {run} are needed for rehearsal: {error}{words}") from error
    check_fit(card, source)
    if config.rehearsal and not source.split("train"):
        raise InputError(f"{source.title} has no train tiles to rehearse. Give --source, or --rehearsal 0.")
    return source


def _refuse_shared(run: Path, source: TileSet, target: TileSet) -> None:
    shared = count_used(used_tiles(source, source.tiles), target, target.tiles)
    if shared:
        raise InputError(
            f"{shared:,} of the {len(target.tiles):,} tiles of {target.folder} share pixels with {source.title}, the "
            f"tile set of {run}. Give tiles of another place."
        )


def _adapt(job: _Job) -> AdaptedRun:
    paths, whole = _write_sets(job)
    rehearsed = f"; {100 * job.config.rehearsal:.0f} % of the draws from {len(job.rehearsal)} of its own tiles"
    announce(
        f"adapting {job.run.name} to {len(job.tiles.tiles)} tiles: {len(job.folds) + 1} trainings of about "
        f"{job.config.steps} steps{rehearsed if job.rehearsal else ''}"
    )
    before = count_tiles(RunModel.open(job.run, job.inference()), job.tiles, range(len(job.tiles.tiles)))
    after = _count_folds(job, paths, whole)
    target = _compare_on_target(job, before, after)
    notes = (*unfinished_notes([job.card]), *_source_notes(job))
    if not target.is_better:
        remove_ledger(job.part)
        return AdaptedRun(target, notes=notes)
    announce(f"training {len(job.folds) + 1} of {len(job.folds) + 1}: all {len(job.tiles.tiles)} tiles")
    final = job.part / FINAL
    trained = train_tile_set(paths, _training_part(job, whole, None), final, job.recipe, holds_run(final))
    card = _final_card(job, trained.card, after)
    place = _fit_own_place(job, card)
    source = _compare_on_source(job, card, place)
    _write_run(job, card, paths, target, source)
    return AdaptedRun(target, source, job.out, card, place, notes)


def _source_notes(job: _Job) -> tuple[str, ...]:
    if job.source is None or job.source.meta.fingerprint == job.card.data_fingerprint:
        return ()
    return (
        f"{job.source.title} is not the tile set that the run was trained on, so the run may have seen its held-out "
        "tiles: scores there may be optimistic.",
    )


def _write_sets(job: _Job) -> tuple[TileSetPaths, TileSet]:
    """Write the tile sets of the adapted run: all new tiles as train; rehearsal and held-out tiles of the source."""
    folder = job.part / TILES
    target = write_derived_set(job.tiles, [replace(tile, split="train") for tile in job.tiles.tiles], folder / "target")
    folders = [target]
    if job.rehearsal and job.source is not None:
        positions = [i for i, tile in enumerate(job.source.tiles) if tile.split == "train"]
        kept = {positions[i] for i in job.rehearsal}
        first = 0
        for number, member in enumerate(job.source.members or (job.source,), start=1):
            own = [t for i, t in enumerate(member.tiles, start=first) if t.split != "train" or i in kept]
            first += len(member.tiles)
            if any(tile.split == "train" for tile in own):
                folders.append(write_derived_set(member, own, folder / f"source{number}"))
    sets = [TileSet.open(each) for each in folders]
    weight = _target_weight(job, len(job.tiles.tiles))
    weights = (weight, *(1.0 for _ in folders[1:])) if len(folders) > 1 else ()
    whole = join_tile_sets(sets, weights)
    places = tuple(str((job.out / TILES / each.name).resolve()) for each in folders)
    return TileSetPaths(places if len(places) > 1 else places[0], weights), whole


def _target_weight(job: _Job, tiles: int) -> float:
    """Return how often one of `tiles` new tiles is drawn, relative to a rehearsal tile."""
    rehearsal = job.config.rehearsal
    return (1 - rehearsal) / rehearsal * len(job.rehearsal) / tiles if job.rehearsal else 1.0


def _training_part(job: _Job, whole: TileSet, fold: TileFold | None) -> TileSet:
    """Return the training tiles of a fold, None for all, without validation tiles: the last epoch is saved.

    The validation tiles are those of the source, and would choose an epoch that is good there.
    """
    count = len(job.tiles.tiles)
    kept = range(count) if fold is None else fold.train
    chosen = {*kept, *range(count, len(whole.tiles))}
    tiles = tuple(tile for i, tile in enumerate(whole.tiles) if i in chosen and tile.split == "train")
    weight = _target_weight(job, len(kept))
    fresh = {whole.tiles[i].scene for i in range(count)}
    weights = {scene: weight if scene in fresh else 1.0 for scene in whole.weights}
    part = replace(whole, tiles=tiles, weights=weights)
    if fold is None:
        return part
    return replace(part, meta=replace(whole.meta, fingerprint=derived_fingerprint(whole, tiles)))


def _fold_file(job: _Job, number: int) -> Path:
    return job.part / f"fold{number}.npz"


def _describe_progress(job: _Job) -> str:
    done = sum(_fold_file(job, number).exists() for number in range(1, len(job.folds) + 1))
    started = done or any(holds_run(each) for each in (*job.part.glob("fold*"), job.part / FINAL) if each.is_dir())
    return f"{done} of {pluralise(len(job.folds), 'fold')} are" if started else ""


def _count_folds(job: _Job, paths: TileSetPaths, whole: TileSet) -> TileCounts:
    """Train the model of each fold and return the counts of all new tiles, each by the model of its own fold."""
    found: dict[int, tuple[ndarray, ndarray]] = {}
    seconds: list[float] = []
    for number, fold in enumerate(job.folds, start=1):
        path = _fold_file(job, number)
        if not path.exists():
            left = mean(seconds) * (len(job.folds) + 2 - number) if seconds else 0.0
            words = f"; about {timedelta(seconds=round(left))} left" if left else ""
            total = len(job.folds) + 1
            announce(f"training {number} of {total}: without {pluralise(len(fold.test), 'tile')} to score{words}")
            seconds.append(_train_fold(job, paths, whole, fold, path))
        try:
            with np.load(path, allow_pickle=False) as arrays:
                confusion, probability = arrays["confusion"], arrays["probability"]
            found |= {tile: (confusion[i], probability[i]) for i, tile in enumerate(fold.test)}
        except (*READ_ERRORS, IndexError) as error:
            raise unreadable_error(path, error) from error
    confusion, probability = (np.stack([found[i][which] for i in sorted(found)]) for which in (0, 1))
    return TileCounts(ConfusionScheme.from_legend(job.card.legend), confusion, probability)


def _train_fold(job: _Job, paths: TileSetPaths, whole: TileSet, fold: TileFold, path: Path) -> float:
    """Train the model of a fold, write the counts of its tiles to `path`, and return the time of the training."""
    folder = path.with_suffix("")
    trained = train_tile_set(paths, _training_part(job, whole, fold), folder, job.recipe, holds_run(folder))
    card = replace(trained.card, window_px=job.card.window[0], overlap_px=job.card.window[1])
    counts = count_tiles(RunModel((folder,), card, job.inference(), {"cards": (card,)}), job.tiles, fold.test)
    save_arrays(path, {"confusion": counts.confusion, "probability": counts.probability})
    # Its weights and state are no longer needed.
    shutil.rmtree(folder, ignore_errors=True)
    return trained.history.seconds


def _compare_on_target(job: _Job, before: TileCounts, after: TileCounts) -> PlaceScores:
    own = job.card.used_thresholds
    maps = {RUN: before.confusion}
    if own:
        maps[FITTED] = before.with_fitted_thresholds(job.folds, own)
    maps[ADAPTED] = after.with_fitted_thresholds(job.folds, (UNCALIBRATED,) * len(own))
    units = independent_units(job.tiles)
    count = len(set(units))
    words = pluralise(count, "tile") if count == len(units) else f"{count} scenes or blocks"
    title = f"{job.tiles.folder.resolve().name}: {len(units)} new tiles, in {len(job.folds)} folds"
    by_unit = {name: sum_by_name(counts, units) for name, counts in maps.items()}
    return PlaceScores(title, words, before.scheme, by_unit)


def _final_card(job: _Job, card: ModelCard, after: TileCounts) -> ModelCard:
    """Return the card of the adapted run, with the thresholds of all folds and the windows of the run."""
    own = (UNCALIBRATED,) * len(job.card.used_thresholds)
    thresholds = [choice.threshold for choice in after.choose_thresholds(range(len(after.confusion)), own)]
    words = f"{len(after.confusion):,} tiles of {job.tiles.folder.resolve().name}, out of fold"
    size, overlap = job.card.window
    card = replace(card, name=job.out.name, window_px=size, overlap_px=overlap)
    return replace(card.with_thresholds(thresholds), calibrated=words) if own else card


def _fit_own_place(job: _Job, card: ModelCard) -> Place | None:
    """Return the run's own place, fitted to the adapted run on the validation tiles of the source; None without any.

    The thresholds of the adapted run are those of the new tiles, which another proportion of the class moves.
    """
    if job.source is None or not job.source.split("val") or not card.used_thresholds:
        return None
    final = job.part / FINAL
    with atomic_update(final) as part:
        card.write(part)
    name = place_name(job.source.folders[0].resolve().name)
    place = fit_place(final, job.source, name, ("val",), job.inference()).place
    place.write(final)
    return place


def _compare_on_source(job: _Job, card: ModelCard, place: Place | None) -> PlaceScores | None:
    """Return the scores of the run and the adapted one on the held-out tiles of the source; None without any.

    The adapted run uses the thresholds of `place`, unless they were fitted to these tiles.
    """
    held_out: tuple[Split, ...] = ("test", "val")
    split = next((each for each in held_out if job.source and job.source.split(each)), None)
    if split is None or job.source is None:
        return None
    final = job.part / FINAL
    config = EvaluateConfig(**asdict(job.inference()))
    card = place.card(card) if place and split == "test" else card
    models = {
        RUN: RunModel.open(job.run, job.inference()),
        ADAPTED: RunModel((final,), card, job.inference(), {"cards": (card,)}),
    }
    scored = {name: score_split(model, job.source, split, config).counts for name, model in models.items()}
    units = scored[RUN].units
    names = join_names([folder.resolve().name for folder in job.source.folders], " and ")
    title = f"{names}: {len(job.source.split(split))} {split} tiles of the run"
    counts = {name: units.sum_by_unit(each.confusion) for name, each in scored.items()}
    return PlaceScores(title, units.description, scored[RUN].scheme, counts)


def _write_run(
    job: _Job, card: ModelCard, paths: TileSetPaths, target: PlaceScores, source: PlaceScores | None
) -> None:
    """Complete the run with its card, its tile sets and adaptation.json, and move it into place."""
    final = job.part / FINAL
    scores = {"target": target.content(), **({"source": source.content()} if source else {})}
    adaptation = Adaptation(
        str(job.run),
        run_file_digest(job.run, WEIGHTS),
        str(job.tiles.folder.resolve()),
        tuple(str(folder.resolve()) for folder in job.source.folders) if job.rehearsal and job.source else (),
        len(job.rehearsal),
        job.config,
        used_tiles(job.tiles, job.tiles.tiles),
        scores,
    )
    with atomic_update(final) as part:
        card.write(part)
        write_text(part / TILES_FILE, paths.text())
        write_json(part / ADAPTATION, asdict(adaptation))
    try:
        # After a kill between these steps, the tile sets have been moved already.
        if not (final / TILES).exists():
            (job.part / TILES).replace(final / TILES)
        if job.out.exists():
            job.out.rmdir()
        final.replace(job.out)
        # It belongs to the folds' identity, and is four times as large as the weights.
        (job.out / STATE).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{job.out} cannot be written: {error.strerror}. Run the same command again.") from error
    remove_ledger(job.part)
