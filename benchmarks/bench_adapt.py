"""What five labelled tiles of another place are worth: `geograft adapt`, and what decided its defaults.

    python benchmarks/bench_adapt.py --data ../shared/data/places [--folder build/places] [--write]

Runs and tile sets are those of bench_places.py, and two of roads. Of each target, five tiles are drawn at random, at
least one with the class; the tiles of all other scenes are scored. Runs are adapted by `geograft adapt`, as a user
would; and trainings with several fractions of rehearsal and of the run's own weights are compared, each scored at a
threshold of 0.5 on both places, and at its own place at the threshold that is best on the validation tiles there.
Results are cached in the folder, so that an interrupted benchmark is resumed, and tables have what is complete. --write
puts them into docs/places.md.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

import machine
import page
from bench_places import KINDS, mask_set
from geograft import Recipe, load_recipe, train
from geograft.card import ModelCard, read_card
from geograft.commands.adapt import adapt
from geograft.commands.demo import ALL_TEST, with_weights
from geograft.commands.rehearsal import adaptation_recipe, choose_rehearsal, step_tiles
from geograft.config import AdaptConfig, InferenceConfig
from geograft.dataset.folds import write_derived_set
from geograft.dataset.tileset import META, TileSet
from geograft.mapping.adaptation import ADAPTED, FITTED, RUN, confusion_at, count_tiles
from geograft.mapping.models import RunModel
from geograft.metrics.calibration import STEPS
from geograft.networks.network import FROZEN_STAGES
from models import is_finished

KINDS["roads"] = ("japan", "vegas", {1: "road", 0: "other"})
TRANSFERS = (
    ("trees", "claremont", "riverside"),
    ("roads", "japan", "vegas"),
    ("roads", "vegas", "japan"),
    ("trees", "riverside", "long_beach"),
    ("trees", "long_beach", "claremont"),
    ("landslides", "sichuan", "nepal"),
)
NAMES = [f"{kind}: {here} to {there}" for kind, here, there in TRANSFERS]
STORY = 0
"""Position of the transfer whose adaptation is shown as it is printed."""
SETTINGS = ((0.0, 0.0), (0.5, 0.0), (0.75, 0.0), (0.0, 0.25), (0.5, 0.25), (0.75, 0.25), (0.5, 0.5))
"""Fractions of rehearsal, and of the run's own weights in the average."""
COUNT, TILE_PX, MIDDLE = 5, 128, 500
CPU = InferenceConfig(backend="torch", device="cpu")


@dataclass(frozen=True)
class Case:
    """A run, five tiles of another place, and the tiles on which both places are scored."""

    name: str
    run: Path
    five: Path
    target: TileSet
    source: TileSet
    rest: tuple[int, ...]
    """Positions of the target's tiles in scenes other than those of the five."""

    def ious(self, run: Path, card: ModelCard) -> tuple[float, float, float]:
        """Return the IoU on the rest of the target and on the test tiles of the source, both at the card's threshold.

        The third is that on the test tiles at the threshold that is best on the validation tiles of the source.
        """
        model = RunModel((run,), card, CPU, {"cards": (card,)})
        splits = ([i for i, tile in enumerate(self.source.tiles) if tile.split == split] for split in ("test", "val"))
        test, val = (count_tiles(model, self.source, positions).probability.sum(axis=0)[0] for positions in splits)
        there = count_tiles(model, self.target, self.rest).probability.sum(axis=0)[0]
        own = card.threshold
        return iou_at(there, own), iou_at(test, own), iou_at(test, max(THRESHOLDS, key=partial(iou_at, val)))


THRESHOLDS = [index / STEPS for index in range(10, STEPS, 10)]


def iou_at(histogram: ndarray, threshold: float) -> float:
    """Return the IoU at a threshold, from the histogram of a probability, (2, 1001)."""
    table = confusion_at(histogram, threshold)
    return float(table[1, 1] / max(table.sum() - table[0, 0], 1))


def cases(folder: Path, data: Path, recipe: Recipe) -> Iterator[Case]:
    """Yield the transfers; runs and tile sets are made if they are missing."""
    small = {"tile_px": TILE_PX, "split": "scene"}
    split, test = (each.with_settings(prepare=small) for each in (recipe, recipe.with_settings(prepare=ALL_TEST)))
    for kind, here, there in TRANSFERS:
        source, target = mask_set(data, kind, here, folder, split), mask_set(data, kind, there, folder, test)
        run = folder / f"run-{kind}-{here}"
        if not is_finished(run):
            train(source, run, recipe, resume=True, chosen=())
        whole = TileSet.open(target)
        chosen = draw(whole)
        five = folder / f"five-{kind}-{there}"
        if not (five / META).exists():
            write_derived_set(whole, [whole.tiles[i] for i in chosen], five)
        scenes = {whole.tiles[i].scene for i in chosen}
        rest = tuple(i for i, tile in enumerate(whole.tiles) if tile.scene not in scenes)
        yield Case(f"{kind}: {here} to {there}", run, five, whole, TileSet.open(source), rest)


def draw(tile_set: TileSet) -> list[int]:
    """Return the positions of random tiles, drawn again until one has the class."""
    rng = np.random.default_rng(0)
    while True:
        chosen = sorted(rng.choice(len(tile_set.tiles), COUNT, replace=False).tolist())
        if any(tile_set.tiles[i].class_fractions[1] for i in chosen):
            return chosen


def continue_training(
    run: Path, source: TileSet, new: TileSet, config: AdaptConfig, folder: Path
) -> tuple[Path, ModelCard]:
    """Train a run further on all tiles of `new` and a rehearsal of `source`, as the last training of `adapt`."""
    chosen: tuple[int, ...] = ()
    count = len(new.tiles)
    target = write_derived_set(new, [replace(tile, split="train") for tile in new.tiles], folder / "target")
    sets: dict[Path, float] = {target: 1.0}
    if config.rehearsal:
        chosen = choose_rehearsal(source, count, config, step_tiles(run))
        own = source.split("train")
        sets = {target: (1 - config.rehearsal) / config.rehearsal * len(chosen) / count}
        sets[write_derived_set(source, [own[i] for i in chosen], folder / "source1")] = 1.0
    recipe = adaptation_recipe(run, config, count, len(chosen))
    result = train(sets if chosen else target, folder / "run", recipe, resume=True)
    size, overlap = read_card(run).window
    return result.run, replace(result.card, window_px=size, overlap_px=overlap)


def trained(case: Case, ratio: float, start_fraction: float, folder: Path) -> tuple[float, float, float]:
    """Train on the five tiles with a fraction of rehearsal, as the last training of `adapt`, and return the IoUs."""
    config = AdaptConfig(rehearsal=ratio, start_fraction=start_fraction, device="cpu")
    folder.mkdir(parents=True, exist_ok=True)
    run, card = continue_training(case.run, case.source, TileSet.open(case.five), config, folder)
    found = case.ious(run, uncalibrated(card))
    shutil.rmtree(folder)
    return found


def uncalibrated(card: ModelCard) -> ModelCard:
    """Return a card with the probabilities of the network as they are, and a threshold of 0.5."""
    return replace(card, temperature=1.0, threshold=0.5)


def adapted(case: Case, folder: Path) -> dict[str, object]:
    """Adapt a run as a user would, and return what was printed and the IoU on the tiles that nobody used."""
    out = folder / "adapted" / case.five.name
    shutil.rmtree(out, ignore_errors=True)
    result = adapt(case.run, case.five, out, AdaptConfig(device="cpu"))
    run = result.run or case.run
    figures = {name: each["iou"].value for name, each in result.target.figures.items()}
    lines = [line.replace(str(folder), "runs").replace("adapted/", "") for line in result.lines()]
    own = result.source.figures[ADAPTED]["iou"].value if result.source else None
    rest = case.ious(run, read_card(run))[0]
    return {"lines": lines, "figures": figures, "written": bool(result.run), "rest": rest, "own": own}


def sorted_jobs(found: Sequence[Case], folder: Path) -> dict[str, Callable[[], Any]]:
    """Return what is to be computed, by name: the story first, and other adaptations last."""
    story = [case for case in found if case.name == NAMES[STORY]]
    jobs: dict[str, Callable[[], Any]] = {f"{case.name}, adapt": partial(adapted, case, folder) for case in story}
    for case in found:
        card = read_card(case.run)
        jobs[f"{case.name}, before"] = partial(case.ious, case.run, card)
        jobs[f"{case.name}, before at 0.5"] = partial(case.ious, case.run, uncalibrated(card))
    jobs |= {f"{case.name}, adapt": partial(adapted, case, folder) for case in found}
    for setting in SETTINGS:
        for case in found:
            part = folder / f"setting-{case.five.name}-{setting[0]:g}-{setting[1]:g}"
            jobs[f"{case.name}, {setting}"] = partial(trained, case, *setting, part)
    return jobs


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with trees/, roads/ and landslides/")
    parser.add_argument("--folder", type=Path, default=Path("build/places"), help="where sets and runs are cached")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/places.md")
    parser.add_argument("--only-cached", action="store_true", help="print what is cached, and compute nothing")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    # The tables are of runs with the same number on four bands, too.
    same = {"frozen_stages": FROZEN_STAGES}
    recipe, weights_from = with_weights(load_recipe(Path("demo")).with_settings(model=same))
    cache = given.folder / "adapt.json"
    known = json.loads(cache.read_bytes()) if cache.exists() else {}
    found = () if given.only_cached else cases(given.folder, given.data, recipe)
    for name, job in sorted_jobs(tuple(found), given.folder).items():
        if name not in known:
            known[name] = job()
            cache.write_text(json.dumps(known, indent=1))
            print(name, known[name], file=sys.stderr, flush=True)
    content = tables(known, weights_from)
    print(content)
    if given.write:
        page.write_section("adapt", content, page.PAGE.with_name("places.md"))


def shown(found: Sequence[float] | None) -> str:
    """Return the IoU there and at the own place; nothing for what is not computed."""
    return " / ".join(f"{value:.3f}" for value in found) if found else ""


def titles() -> dict[str, str]:
    """Return the rows of the table of settings: what is known of each by its key."""
    default = AdaptConfig()
    found = {"before at 0.5": "before"}
    for rehearsal, fraction in SETTINGS:
        words = f"rehearsal {rehearsal:g}, own weights {fraction:g}"
        is_default = (rehearsal, fraction) == (default.rehearsal, default.start_fraction)
        found[f"{(rehearsal, fraction)}"] = f"**{words}**" if is_default else words
    return found


def tables(known: Mapping[str, Any], weights_from: str) -> str:
    """Return the tables and the story, of those transfers that are complete."""
    done = [name for name in NAMES if f"{name}, adapt" in known]
    rows = []
    for name in done:
        found, before = known[f"{name}, adapt"], known[f"{name}, before"]
        own = [f"{found['figures'][each]:.3f}" for each in (RUN, FITTED, ADAPTED)]
        after = [f"{found[key]:.3f}" for key in ("rest", "own")] if found["written"] else ["not written", ""]
        rows.append([name, *own, f"{before[0]:.3f}", after[0], f"{before[1]:.3f}", after[1]])
    head = ["IoU", f"five tiles: {RUN}", "threshold fitted", "adapted", "other tiles: before", "**after**"]
    compared = [name for name in NAMES if f"{name}, {SETTINGS[0]}" in known]
    ratios = [[words, *(shown(known.get(f"{name}, {key}")) for name in compared)] for key, words in titles().items()]
    columns = ["there / its own place / with a threshold of its own", *compared]
    story = [f"    {line}" for line in known[f"{NAMES[STORY]}, adapt"]["lines"]] if NAMES[STORY] in done else []
    about = (
        f"Encoder weights: {weights_from}; five random tiles, one seed. "
        f"{machine.describe(('torch', 'onnxruntime', 'openvino'))}"
    )
    adapted_table = page.table([*head, "its own place: before", "**after**"], rows)
    return "\n\n".join([about, "\n".join(story), adapted_table, page.table(columns, ratios)])


if __name__ == "__main__":
    main()
