"""`geograft go`: from the labels of a project folder to its map: the whole workflow, repeated after each labelling.

Which steps are repeated, and how an interrupted one is resumed: see `geograft.commands.project_work`.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from geograft.card import CARD, TILES_FILE
from geograft.commands.calibrate import calibrate
from geograft.commands.demo import with_weights
from geograft.commands.evaluate import evaluate
from geograft.commands.polygons import polygons
from geograft.commands.predict import format_seconds, predict
from geograft.commands.prepare import prepare
from geograft.commands.project import QGIS_FILE, RESULTS_FILE, map_layer, results_project
from geograft.commands.project_work import TRAIN, Work, map_files, parse_first, predict_window
from geograft.commands.report import PAGE, report
from geograft.commands.suggest import ALIASES, LAYER, suggest
from geograft.commands.train import describe_thresholds, read_recipe, train
from geograft.config import InferenceConfig, PredictConfig, Recipe
from geograft.config.recipes import LABEL_FILE, MAPS, PROJECT_FILE, RUN, SUGGESTED, TILES, VIEWS, read_project
from geograft.dataset.joined import TileSetPaths
from geograft.dataset.sources import VectorSource
from geograft.dataset.tileset import META, TileSet
from geograft.errors import InputError, OutputError
from geograft.files import (
    StrPath,
    atomic_update,
    complete_update,
    translate_write_errors,
    write_text,
)
from geograft.geo.grid import Window
from geograft.geo.qgis_project import ProjectLayer
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.styles import classes_style
from geograft.geo.rasters.tags import map_legend
from geograft.geo.vectors.label_file import CLASS, ORIGIN, Area, read_label_file
from geograft.geo.vectors.reader import read_frame
from geograft.geo.vectors.styles import Entry, FieldForm, categorized_style, ranked_style
from geograft.locks import lock_output
from geograft.mapping.polygons.writer import layer_name
from geograft.progress import announce
from geograft.text import join_names, pluralise

INPUTS_FILE = "inputs.json"
SCORE, SUGGEST, REPORT = "evaluate", "suggest", "report"
"""Names of the steps beside TRAIN; those of maps are `map NAME`."""
NO_LIMIT_MINUTES = 1e6
"""With it, training says how long it will take."""
FEW_AREAS = 6
"""Below this number of scoring areas, a confidence interval is uncertain itself."""
MAX_VIEW_FRACTION = 0.5
"""Of an image: a larger part is not mapped before the rest, since the whole map takes hardly longer."""


@dataclass(frozen=True)
class Outcome:
    """The result of `go`: what each step printed when it was last done."""

    folder: Path
    steps: Mapping[str, Sequence[str]]
    """Lines of each step, in order."""
    repeated: tuple[str, ...]
    """The steps that were done now; the inputs of all others had not changed."""
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the accuracy, the maps and the suggestions as text."""
        unchanged = {name: "" if name in self.repeated else " (unchanged)" for name in self.steps}
        news = f"Project > Revert in QGIS shows the new layers of {self.folder / QGIS_FILE} in the group Results."
        return [
            *(line for name, lines in self.steps.items() for line in (f"{name}{unchanged[name]}", *lines, "")),
            *(f"Note: {note}" for note in self.notes),
            news if self.repeated else "Nothing has changed since the last time.",
        ]


def go(folder: StrPath, minutes: float | None = None, first: Sequence[str] = ()) -> Outcome:
    """Train on the labelled areas of a project, and refresh its scores, maps, polygons, suggestions and report.

    Needs one labelled training area. Without labelled scoring areas, nothing is scored. What depends on labels, images
    and settings that have not changed is not repeated. After an interruption the same call resumes. Each output
    replaces the last one when it is finished; labels.gpkg, project.toml and project.qgz are only read.

    `minutes` is how long training may take; by default as long as project.toml says. Images named in `first` are mapped
    before the others. Of one named as NAME@ROW,COL,HEIGHT,WIDTH that window is mapped before the rest: its map, with
    the pixels that the whole map will have there, is in the folder .views until the whole is complete.

    Raises:
        InputError: if the folder is not a project, or its labels or images cannot be used.
        SettingError: for invalid settings in project.toml; if there is no image or no window as in `first`.
        OutputError: if another process writes to the project, or something else is at the place of an output.
    """
    folder = Path(folder)
    settings, chosen = read_project(folder)
    with lock_output(folder):
        work = Work(folder, settings, chosen, minutes, read_label_file(folder / LABEL_FILE))
        _check_labels(work)
        _check_outputs(work)
        _ = work.states  # an image that cannot be read is told before anything is written
        views = dict(parse_first(text, work.images) for text in first)
        for line in plan_lines(work):
            announce(line)
        with translate_write_errors(work.staging):
            work.staging.mkdir(exist_ok=True)
        complete_update(folder / MAPS)
        work.complete_training()
        _refresh_run(work)
        _refresh_scores(work)
        _refresh_maps(work, views)
        _refresh_suggestions(work)
        _refresh_report(work)
        write_text(folder / RESULTS_FILE, results_project(settings.title, result_layers(work), _crs(work)))
        for stale in work.staging.glob("map-*"):
            shutil.rmtree(stale, ignore_errors=True)
    return Outcome(folder, {s: work.done[s]["lines"] for s in work.steps}, tuple(work.repeated), tuple(work.notes))


# ------------------------------------------------------------------------------------------------------------ the plan


def plan_lines(work: Work) -> list[str]:
    """Return what is labelled, what will be done and how long it took the last time, and what is missing."""
    scoring = _areas(work, "scoring")
    maps = join_names((f"map {name}" for name in work.images), limit=3)
    score = f"{SCORE}, " if any(area.labelled for area in scoring) else ""
    seconds = sum(float(each["seconds"]) for each in work.done.values())
    earlier = f" (the last time took {format_seconds(seconds)})" if seconds else ""
    lines = (
        f"{_count(_areas(work, 'training'))} training areas and {_count(scoring)} random scoring areas are labelled",
        f"{TRAIN}, calibrate, {score}{maps}, polygons, {SUGGEST}, {REPORT}; unchanged steps are skipped{earlier}",
        *scoring_advice(scoring),
    )
    return [f"plan: {line}" for line in lines]


def _areas(work: Work, role: str) -> list[Area]:
    return [area for area in work.labels.areas if area.role == role and (role == "training" or area.is_sample)]


def _count(areas: Sequence[Area]) -> str:
    return f"{sum(area.labelled for area in areas)} of {len(areas)}"


def scoring_advice(areas: Sequence[Area]) -> list[str]:
    """Return what is missing for an accuracy figure, and which random areas to label next; empty if nothing is."""
    done = sum(area.labelled for area in areas)
    waiting = sorted(area.rank or area.id for area in areas if not area.labelled)
    following = f" Label number {' then '.join(map(str, waiting[:3]))} next." if waiting else ""
    if not done:
        return [f"no random scoring area is labelled, so the accuracy of the map is unknown.{following}"]
    if done < FEW_AREAS:
        few = pluralise(done, "random scoring area")
        return [f"with {few} the confidence interval is wide; {FEW_AREAS} or more are better.{following}"]
    return []


def _check_labels(work: Work) -> None:
    """Raise InputError if nothing can be trained on, or a polygon has a class that the project lacks."""
    if not any(area.labelled for area in _areas(work, "training")):
        drawn = pluralise(len(_areas(work, "training")), "training area")
        raise InputError(
            f"{work.labels.path} has no labelled training area, of {drawn}. In QGIS, draw one in the layer areas, draw "
            "every object of the classes inside of it in the layer labels, check labelled, and save the edits."
        )
    unknown = sorted(set(work.labels.polygons_in(None).classes) - set(work.settings.names))
    if unknown:
        raise InputError(
            f"{work.labels.path} has polygons of class {join_names(unknown)}, but the classes of {PROJECT_FILE} are "
            f"{join_names(work.settings.names)}. Correct the polygons, or add the class there."
        )


def _check_outputs(work: Work) -> None:
    """Raise OutputError if an output is not ours, or another program has unsaved changes in it."""
    for name in (TILES, RUN):
        work.refuse_foreign(work.folder / name, TRAIN)
    for name in work.images:
        work.refuse_foreign(work.folder / MAPS / f"{name}.tif", f"map {name}")
    work.refuse_foreign(work.folder / SUGGESTED, SUGGEST)
    for path in (work.folder / SUGGESTED, *(work.folder / MAPS / f"{name}.gpkg" for name in work.images)):
        journal = path.with_name(f"{path.name}-wal")
        if journal.is_file() and journal.stat().st_size:
            raise OutputError(
                f"{path} has changes of a program that has it open ({journal.name}); nothing was changed. Close it "
                "there, or copy its changes to another file first."
            )


# ------------------------------------------------------------------------------------------------------- tiles and run


def _refresh_run(work: Work) -> None:
    inputs = work.training_digest
    work.do(TRAIN, inputs, lambda: _train(work, inputs), [work.folder / TILES / META, work.run / CARD])


def _train(work: Work, inputs: str) -> list[str]:
    """Make tile set and run in the staging folder, and return lines about them."""
    tiles, run, settings = work.staging / TILES, work.staging / RUN, work.settings
    _start_over_if_changed(work, inputs)
    if not (tiles / META).exists():
        prepare(VectorSource(tuple(work.images.values()), work.labels.path), tiles, settings.prepare)
    single = settings.train.devices * settings.train.nodes == 1
    minutes = NO_LIMIT_MINUTES if single and work.minutes is None else work.minutes
    recipe = read_recipe(run) or _recipe(work)
    lines = train(tiles, run, recipe, resume=True, minutes=minutes, chosen=work.chosen).lines()[:-1]
    tile_set = TileSet.open(tiles)
    missing = [name for name in settings.names if name not in tile_set.meta.legend.names]
    lines += [f"not mapped, since no polygon has that class: {join_names(missing)}"] if missing else []
    if tile_set.split("val"):
        lines.append(describe_thresholds(calibrate(run, tiles, _inference(settings.predict)).card))
    write_text(run / TILES_FILE, TileSetPaths.of(work.folder / TILES).text())
    return lines


def _inference(settings: PredictConfig) -> InferenceConfig:
    """Return how pixels are predicted in maps, for the calibration of their thresholds."""
    return InferenceConfig(**{each.name: getattr(settings, each.name) for each in fields(InferenceConfig)})


def _recipe(work: Work) -> Recipe:
    """Return the recipe of the project; with an encoder from a package if the hub of the default does not respond."""
    # `calibrate` follows, with windows and backend of the project's maps.
    recipe = work.settings.recipe.with_settings(train={"calibrate": False})
    if work.chosen & {"architecture", "encoder", "weights", "start"}:
        return recipe
    available, origin = with_weights(recipe)
    if available != recipe:
        announce(f"plan: the hub with the weights of {recipe.model.encoder} does not respond; encoder: {origin}")
    return available


def _start_over_if_changed(work: Work, inputs: str) -> None:
    """Remove a tile set and a run in progress that were made from other inputs."""
    path = work.staging / INPUTS_FILE
    known = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if known == inputs:
        return
    with translate_write_errors(work.staging):
        for name in (TILES, RUN):
            shutil.rmtree(work.staging / name, ignore_errors=True)
    write_text(path, inputs)


# ----------------------------------------------------------------------------------------- scores, maps and suggestions


def _refresh_scores(work: Work) -> None:
    if not TileSet.open(work.folder / TILES).split("test"):
        work.notes += scoring_advice([area for area in work.labels.areas if area.is_sample])
        return
    config = work.settings.evaluate
    inputs = work.digest_with_run(asdict(config))
    work.do(SCORE, inputs, lambda: evaluate(work.run, config=config).lines(), [work.run / "scores-test.json"])


def _refresh_maps(work: Work, views: Mapping[str, Window | None]) -> None:
    """Map the windows that `views` has of its images, then these images, then the others."""
    folder = work.folder / VIEWS
    with translate_write_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    try:
        for name, window in views.items():
            if window is not None:
                _map_view(work, name, window)
        for name in sorted(work.images, key=lambda name: name not in views):
            _refresh_map(work, name)
            for file in reversed(map_files(folder / f"{name}.tif")):
                file.unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _map_view(work: Work, name: str, window: Window) -> None:
    """Map a window of an image, unless its map is there or takes hardly longer."""
    with Image.open(work.images[name]) as image:
        size = image.info.grid.height * image.info.grid.width
    if window.height * window.width > MAX_VIEW_FRACTION * size or work.is_done(*_map_step(work, name)):
        return
    announce(f"map {name}, the part that was asked for first ...")
    out = work.folder / VIEWS / f"{name}.tif"
    # It may have no valid pixel. What else is wrong is told by the whole map.
    with suppress(InputError):
        predict_window(work.run, work.images[name], window, out, work.settings.predict)


def _map_step(work: Work, name: str) -> tuple[str, str, list[Path]]:
    """Return the name of the step that maps an image, a digest of its inputs, and its files."""
    settings = work.settings
    inputs = work.digest_with_run(work.states[name], asdict(settings.predict), asdict(settings.polygons))
    return f"map {name}", inputs, [work.folder / MAPS / f"{name}{suffix}" for suffix in (".tif", ".gpkg")]


def _refresh_map(work: Work, name: str) -> None:
    step, inputs, files = _map_step(work, name)
    work.do(step, inputs, lambda: _map(work, name, inputs), files)


def _map(work: Work, name: str, inputs: str) -> list[str]:
    """Make a map and its polygons in the staging folder, and move them to their place: all files, or none."""
    part = work.staging / f"map-{inputs[:16]}"
    target, outlines = part / f"{name}.tif", part / f"{name}.gpkg"
    lines = [] if target.exists() else predict(work.run, work.images[name], target, work.settings.predict).lines()
    if outlines.exists():
        outlines.unlink()
    lines += polygons(target, outlines, work.settings.polygons).lines()
    with atomic_update(work.folder / MAPS) as update, translate_write_errors(work.folder / MAPS):
        for file in (update / outlines.name, *map_files(update / target.name)):
            made = part / file.name
            if made.exists():
                made.replace(file)
            elif (work.folder / MAPS / file.name).exists():
                file.touch()  # removes the one of the last time
    shutil.rmtree(part, ignore_errors=True)
    return [line.replace(str(part), str(work.folder / MAPS)) for line in lines]


def _refresh_suggestions(work: Work) -> None:
    inputs = work.digest_with_run(work.states, asdict(work.settings.suggest))
    work.do(SUGGEST, inputs, lambda: _suggest(work))


def _suggest(work: Work) -> list[str]:
    part, place = work.staging / SUGGESTED, work.folder / SUGGESTED
    with translate_write_errors(place):
        part.unlink(missing_ok=True)
        try:
            lines = suggest(work.run, tuple(work.images.values()), part, work.settings.suggest).lines()
        except InputError as error:  # there may be no tile without labels
            place.unlink(missing_ok=True)
            return [f"no suggestions: {error}"]
        part.replace(place)
    return [line.replace(str(part), str(place)) for line in lines]


def _refresh_report(work: Work) -> None:
    first = next(iter(work.images))
    page = work.run / PAGE
    inputs = work.digest_with_run({name: known["inputs"] for name, known in work.done.items() if name != REPORT})
    work.do(REPORT, inputs, lambda: report(work.run, class_map=work.folder / MAPS / f"{first}.tif").lines(), [page])


# ------------------------------------------------------------------------------------------------------ shown in QGIS


def result_layers(work: Work) -> list[ProjectLayer]:
    """Return suggestions, polygons and maps as QGIS shows them: by the colours of project.toml.

    Fields that labels.gpkg has and these layers lack are added with one value, which is copied with a feature.
    """
    colours = {each.name: each.colour for each in work.settings.classes}
    layers = [_suggestions_layer(work)] if (work.folder / SUGGESTED).exists() else []
    maps = {name: work.folder / MAPS / f"{name}.tif" for name in work.images}
    form = FieldForm(constants={ORIGIN: "suggested"})
    style = categorized_style(CLASS, [Entry(name, name, colour) for name, colour in colours.items()], "area", form)
    for name in maps:
        source = f"{MAPS}/{name}.gpkg"
        layer = layer_name(Path(source))
        layers.append(ProjectLayer(f"{name}: polygons", source, _crs(work, name), style, layer, read_only=True))
    for name, path in maps.items():
        with Image.open(path) as image:
            legend = map_legend(image.info)
        assert legend is not None, "a map has a legend"
        own = {
            value: colours.get(each, plain)
            for value, each, plain in zip(legend.values, legend.names, legend.colours, strict=True)
        }
        shown = classes_style(dict(zip(legend.values, legend.names, strict=True)), own)
        layers.append(map_layer(name, _crs(work, name), shown))
    return layers


def _suggestions_layer(work: Work) -> ProjectLayer:
    frame = read_frame(work.folder / SUGGESTED)
    style = ranked_style("rank", len(frame), FieldForm(ALIASES, label="rank"))
    return ProjectLayer("label next", SUGGESTED, frame.crs, style, LAYER, read_only=True)


def _crs(work: Work, name: str = "") -> Any:
    """Return the CRS of an image; by default of the first, which is that of labels.gpkg."""
    with Image.open(work.images[name or next(iter(work.images))]) as image:
        return image.info.grid.crs
