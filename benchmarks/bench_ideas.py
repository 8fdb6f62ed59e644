"""Ideas against Geograft's default, each alone: IoU on two grounds with intervals, and what a step costs.

    python benchmarks/bench_ideas.py --weights WEIGHTS [--forest 0 1 2] [--crowns 0 1] [--turns 7] [--write]

The ideas are those of `recipes/ideas.toml`, and the other decoders of `decoders.py`. `forest` are Sentinel-2 scenes of
the Amazon as `make bench-train` prepares them, scored on the val part; `crowns` is the demo's scene with the demo's
tiles, scored on its test blocks; each with the seeds that are given. Every idea trains as `geograft curve` does it, on
all training tiles. Differences to the default are paired, with 95 % intervals over scenes and blocks. Costs are those
on the crowns of a training step with its feed and of a prediction, to the default's: all ideas take turns in one
process, on one thread, and the least seconds of the processor count, for what else the machine does only adds to them.

--write puts the table into LOG.md. Results are kept in --folder; the same command goes on from there. A training takes
some two minutes of one core, and there are grounds x ideas x seeds of them.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import machine
import page
from bench_train import tile_set
from decoders import CHANGES
from geograft.card import WEIGHTS, read_card
from geograft.commands.compare import slug
from geograft.commands.curve import Curve, curve
from geograft.commands.demo import SCENES
from geograft.commands.prepare import prepare
from geograft.commands.trials import CurveJob, ScoredRun, read_scored_run, score_and_save
from geograft.config import Recipe, load_recipe
from geograft.dataset.sources import VectorSource
from geograft.dataset.tileset import META, TileSet
from geograft.files import write_json
from geograft.inference.predictor import Predictor
from geograft.text import pluralise
from geograft.training.checkpoint import load_weights
from geograft.training.loop import fit
from idea_costs import PREDICTION, STEP, Idea, Runner, costs
from trainees import ENCODER

COSTS = "costs.json"
ALL_TILES = (100.0,)


def forest(folder: Path) -> Path:
    """Return the tile set of the Amazon's scenes, prepared once."""
    return tile_set(None, folder.parent / "bench" / "train")


def crowns(folder: Path) -> Path:
    """Return the demo's own tile set, prepared once."""
    tiles = folder / "crowns-tiles"
    if not (tiles / META).exists():
        source = VectorSource((SCENES / "training.tif",), SCENES / "training.gpkg", class_field="class")
        prepare(source, tiles, load_recipe(Path("demo")).prepare)
    return tiles


SEEDS = {"forest": [0, 1, 2], "crowns": [0, 1]}
GROUNDS: dict[str, Callable[[Path], Path]] = {"forest": forest, "crowns": crowns}


@dataclass(frozen=True)
class Ground:
    """Tiles, and what all ideas are trained to on them."""

    tiles: Path
    recipe: Recipe
    folder: Path

    @cached_property
    def whole(self) -> TileSet:
        """The tile set, opened."""
        return TileSet.open(self.tiles)

    def found(self) -> Curve:
        """Return the figures of all ideas; trains what is missing."""
        settings = curve(self.tiles, self.folder, self.recipe, ALL_TILES)
        decoders = [self._decoder(name, base) for name in CHANGES for base in settings.runs if self._is_first(base)]
        return replace(settings, points=(*settings.runs, *decoders))

    def _is_first(self, point: ScoredRun) -> bool:
        return point.job.variant == self.recipe.variants[0].name

    def _decoder(self, name: str, base: ScoredRun) -> ScoredRun:
        job = replace(base.job, variant=name, run=f"{slug(name)}/seed{base.job.seed}")
        return read_scored_run(job, self.whole, self.folder) or self._trained(job, self.folder / base.job.run)

    def _trained(self, job: CurveJob, base: Path) -> ScoredRun:
        run = self.folder / job.run
        network, data = Idea(job.variant, job.recipe, CHANGES[job.variant]).parts(self.whole)
        history = fit(network, data, job.recipe.train, run, resume=run.exists())
        load_weights(run / WEIGHTS, network)
        # Of the same tiles and settings: all but the epoch is the default's.
        card = replace(read_card(base), epoch=history.best.epoch)
        return score_and_save(job, self.whole, run, Predictor(card, network, "cpu"))


def ideas_of(recipe: Recipe) -> Iterator[Idea]:
    """Yield the default, what changes its settings, and what changes its decoder."""
    first, *others = (Idea(variant.name, recipe.variant(variant, 0)) for variant in recipe.variants)
    yield from (first, *others)
    yield from (replace(first, name=name, change=change) for name, change in CHANGES.items())


def measured(ideas: Iterable[Idea], tiles: Path, turns: int, kept: Path) -> dict[str, dict[str, float]]:
    """Return what each idea costs to the first, measured now or before."""
    if not kept.exists():
        whole = TileSet.open(tiles)
        write_json(kept, costs({idea.name: Runner.of(idea, whole) for idea in ideas}, turns))
    found: dict[str, dict[str, float]] = json.loads(kept.read_bytes())
    return found


def rows_of(curves: Sequence[Curve], costs: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return a row an idea: what it costs, and on each ground its IoU and the difference to the default."""
    first = next(iter(costs))
    rows = []
    for name, cost in costs.items():
        own = [f"{cost[what]:.2f}" for what in (STEP, PREDICTION)]
        rows.append([name, *own, *(cell for each in curves for cell in _cells(each, name, first))])
    rows[0][0] = f"**{first}**"
    return rows


def _cells(found: Curve, name: str, first: str) -> list[str]:
    (mine,), (default,) = (found.by_variant[each] for each in (name, first))
    own = f"{mine.figures['iou'].value:.3f}"
    return [own, "" if name == first else " ".join(mine.measure.difference(default.measure)["iou"].format("+.3f"))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help=f"weights of {ENCODER}")
    for name, seeds in SEEDS.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=seeds, help=f"seeds on {name}")
    parser.add_argument("--turns", type=int, default=7, help="in which steps are timed (default 7)")
    parser.add_argument("--folder", type=Path, default=Path("build/ideas"))
    parser.add_argument("--write", action="store_true", help="put the table into LOG.md")
    given = parser.parse_args(arguments)
    model = {"encoder": ENCODER, "weights": str(given.weights.resolve())}
    recipe, seeds = load_recipe(Path("ideas")).with_settings(model=model), {name: getattr(given, name) for name in GROUNDS}
    grounds = [
        Ground(tiles(given.folder), replace(recipe, seeds=tuple(seeds[name])), given.folder / name)
        for name, tiles in GROUNDS.items()
    ]
    curves = [ground.found() for ground in grounds]
    cost = measured(ideas_of(recipe), crowns(given.folder), given.turns, given.folder / COSTS)
    head = ["idea, alone", "a step", "a prediction"]
    head += [cell for name in GROUNDS for cell in (f"IoU of {name}", "to the default")]
    each = [
        f"{name}: {pluralise(len(seeds[name]), 'seed')}, intervals over {found.runs[0].words}"
        for name, found in zip(GROUNDS, curves, strict=True)
    ]
    about = f"{'; '.join(each)}. {machine.described(('torch', 'timm'))}"
    text = f"{page.table(head, rows_of(curves, cost))}\n\n{about}"
    print(text)
    if given.write:
        page.write("ideas", text, page.LOG)


if __name__ == "__main__":
    main()
