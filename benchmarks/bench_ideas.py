"""Ablations of Geograft's default, one change at a time: IoU on two data sets with confidence intervals, and cost.

    python benchmarks/bench_ideas.py --weights WEIGHTS [--forest 0 1 2] [--crowns 0 1] [--rounds 7] [--write]

The variants are those of `recipes/ideas.toml` and the decoders of `decoders.py`. `forest` is the tile set of Sentinel-2
scenes that `make bench-train` prepares, scored on its validation split. `crowns` is the demo's scene with the demo's
tiles, scored on its test split. --forest and --crowns set the seeds. Every variant trains as `geograft curve`
does, on all training tiles. Differences from the default are paired, with 95 % CIs from resampling scenes or blocks.

Costs are the CPU time of a training step, data loading included, and of a prediction on the crowns, relative to the
default. All variants alternate in one process on one thread, and the minimum over the rounds counts, because other load
on the machine can only add time.

--write puts the table into LOG.md. Results are cached in --folder, so the same command resumes. A training takes about
two minutes on one core; there are data sets x variants x seeds of them.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

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
from geograft.config import EvaluateConfig, Recipe, load_recipe
from geograft.dataset.sources import VectorSource
from geograft.dataset.tileset import META, TileSet
from geograft.files import file_digest, write_json
from geograft.inference.backends import cpu_threads
from geograft.inference.predictor import EnsembleMember, EnsemblePredictor
from geograft.inference.runners import TileWorkers
from geograft.inference.torch_networks import TorchRunner
from geograft.mapping.models import RunModel
from geograft.networks.network import Network
from geograft.text import pluralise
from geograft.training.checkpoint import load_weights
from geograft.training.loop import fit
from idea_costs import PREDICTION, STEP, Idea, Runner, relative_costs
from trainees import ENCODER

COSTS = "costs.json"
ALL_TILES = (100.0,)


def forest_tiles(folder: Path) -> Path:
    """Return the tile set of the Amazon scenes, prepared once."""
    return tile_set(None, folder.parent / "bench" / "train")


def crown_tiles(folder: Path) -> Path:
    """Return the demo's own tile set, prepared once."""
    tiles = folder / "crowns-tiles"
    if not (tiles / META).exists():
        source = VectorSource((SCENES / "training.tif",), SCENES / "training.gpkg", class_field="class")
        prepare(source, tiles, load_recipe(Path("demo")).prepare)
    return tiles


SEEDS = {"forest": [0, 1, 2], "crowns": [0, 1]}
DATA_SETS: dict[str, Callable[[Path], Path]] = {"forest": forest_tiles, "crowns": crown_tiles}


@dataclass(frozen=True)
class Ablation:
    """All variants of a recipe on one tile set."""

    tiles: Path
    recipe: Recipe
    folder: Path

    @cached_property
    def tile_set(self) -> TileSet:
        """The tile set, opened."""
        return TileSet.open(self.tiles)

    def run(self) -> Curve:
        """Return the results of all variants. Trains those that are missing."""
        settings = curve(self.tiles, self.folder, self.recipe, ALL_TILES)
        decoders = [self._decoder_run(name, base) for name in CHANGES for base in settings.runs if self._is_first(base)]
        return replace(settings, runs=(*settings.runs, *decoders))

    def _is_first(self, run: ScoredRun) -> bool:
        return run.job.variant == self.recipe.variants[0].name

    def _decoder_run(self, name: str, base: ScoredRun) -> ScoredRun:
        job = replace(base.job, variant=name, run=f"{slug(name)}/seed{base.job.seed}")
        return read_scored_run(job, self.tile_set, self.folder) or self._train(job, self.folder / base.job.run)

    def _train(self, job: CurveJob, base: Path) -> ScoredRun:
        run = self.folder / job.run
        network, data = Idea(job.variant, job.recipe, CHANGES[job.variant]).build(self.tile_set)
        history = fit(network, data, job.recipe.train, run, resume=run.exists())
        load_weights(run / WEIGHTS, network)
        # Tiles and settings are those of the default, so only the epoch differs.
        card = replace(read_card(base), epoch=history.best.epoch, weights_digest=file_digest(run / WEIGHTS))
        card.write(run)
        return score_and_save(job, self.tile_set, run, NetworkModel((run,), card, EvaluateConfig(), network=network))


@dataclass
class NetworkModel(RunModel):
    """The model of a network with a decoder that no run can describe."""

    network: Network = field(kw_only=True)

    def predictor(self, *_: object) -> EnsemblePredictor:
        """Return the predictor for windows of any size, on the CPU."""
        runner = TorchRunner(self.network, torch.device("cpu"))
        member = EnsembleMember(self.card.mean, self.card.std, self.card.temperature, runner)
        return EnsemblePredictor(self.card, [member], TileWorkers(cpu_threads()))


def list_ideas(recipe: Recipe) -> Iterator[Idea]:
    """Yield the default, the variants of its settings and the variants of its decoder."""
    first, *others = (Idea(variant.name, recipe.variant(variant, 0)) for variant in recipe.variants)
    yield from (first, *others)
    yield from (replace(first, name=name, change=change) for name, change in CHANGES.items())


def cached_costs(ideas: Iterable[Idea], tiles: Path, rounds: int, path: Path) -> dict[str, dict[str, float]]:
    """Return the relative costs in `path`, measured first if any variant is missing."""
    every = tuple(ideas)
    cached: dict[str, dict[str, float]] = json.loads(path.read_bytes()) if path.exists() else {}
    # Costs of variants that were renamed, added or removed since cannot be paired with the results.
    if list(cached) != [idea.name for idea in every]:
        opened = TileSet.open(tiles)
        cached = relative_costs({idea.name: Runner.of(idea, opened) for idea in every}, rounds)
        write_json(path, cached)
    return cached


def table_rows(curves: Sequence[Curve], costs: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return one row per variant: its relative cost, and its IoU and difference from the default on each data set."""
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
    """Train the missing variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help=f"weights of {ENCODER}")
    for name, default in SEEDS.items():
        listed = " ".join(map(str, default))
        parser.add_argument(
            f"--{name}", type=int, nargs="+", default=default, help=f"seeds for {name} (default {listed})"
        )
    parser.add_argument("--rounds", type=int, default=7, help="timing rounds (default 7)")
    parser.add_argument("--folder", type=Path, default=Path("build/ideas"), help="where results are cached")
    parser.add_argument("--write", action="store_true", help="put the table into LOG.md")
    given = parser.parse_args(arguments)
    model = {"encoder": ENCODER, "weights": str(given.weights.resolve())}
    recipe = load_recipe(Path("ideas")).with_settings(model=model, train={"calibrate": False})
    seeds = {name: getattr(given, name) for name in DATA_SETS}
    ablations = [
        Ablation(tiles(given.folder), replace(recipe, seeds=tuple(seeds[name])), given.folder / name)
        for name, tiles in DATA_SETS.items()
    ]
    curves = [ablation.run() for ablation in ablations]
    cost = cached_costs(list_ideas(recipe), crown_tiles(given.folder), given.rounds, given.folder / COSTS)
    head = ["variant", "training step", "prediction"]
    head += [cell for name in DATA_SETS for cell in (f"IoU, {name}", "difference")]
    each = [
        f"{name}: {pluralise(len(seeds[name]), 'seed')}, 95 % CIs over {found.runs[0].words}"
        for name, found in zip(DATA_SETS, curves, strict=True)
    ]
    about = f"{'; '.join(each)}. {machine.describe(('torch', 'timm'))}"
    text = f"{page.table(head, table_rows(curves, cost))}\n\n{about}"
    print(text)
    if given.write:
        page.write_section("ideas", text, page.LOG)


if __name__ == "__main__":
    main()
