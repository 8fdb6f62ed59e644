"""What makes a model better where it was trained, and what it costs: one change of the default at a time.

    python benchmarks/bench_in_place.py --data ../shared/data/places --weights FILE [--folder build/in-place] [--write]

The data sets are the places of `laboratory.py`: street trees in three cities, roads in two places, landslides in one,
forest in one, and the tree crowns of two scenes. A variant trains in each place on two thirds of its scenes, for about
STEPS optimizer steps or a multiple of them, and is scored at a threshold of 0.5 on the others. Beside the default and
its variants stands the U-Net of segmentation_models.pytorch (smp), with the same encoder, weights, frozen stages and
training. Other settings are in the tables of `bench_generalisation.py`, which is about other places.

The screen trains every variant with one seed. The three best are trained again with the fresh seeds, and their
differences from the default get p-values and confidence intervals by Holm's method; scenes are resampled. The cost is
the CPU time of a training step of 8 tiles and of a prediction, all variants alternating in one process.

Results are cached by variant, place and seed, so that the same command resumes. --write puts the tables into
docs/training.md.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rasterio.errors import NotGeoreferencedWarning

import decoders
import machine
import page
from bench_generalisation import CONFIRMED, Means, difference_text, holm, mean_iou
from geograft import load_recipe
from geograft.files import write_json
from geograft.networks.network import Network
from idea_costs import PREDICTION, STEP, Idea, Runner, relative_costs
from laboratory import APART, LONGER, PLACES, Laboratory, Run, Variant
from peernets import use_smp_unet
from trainees import ENCODER

DEFAULT, PEER = Variant("the default"), Variant("smp's U-Net", rebuild=use_smp_unet, train={"auxiliary_weight": 0})
VARIANTS = (
    DEFAULT,
    PEER,
    Variant("double decoder width", rebuild=decoders.double_width),
    Variant("separable convolutions", rebuild=decoders.use_separable_convolutions),
    Variant("two context blocks", rebuild=decoders.double_context),
    Variant("boundaries weighted", train={"boundary_weight": 2}),
    Variant("Lovász instead of Dice", train={"region_loss": "lovasz"}),
    Variant("EMA of 0.98", train={"ema": 0.98}),
    LONGER,
)
COSTS = "costs.json"
ROUNDS = 7


def in_place(kinds: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the transfers of each place to itself."""
    return [(kind, place, place) for kind in kinds for place in PLACES[kind] if place not in APART]


def runs(variants: Sequence[Variant], kinds: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Return all runs: seed by seed and place by place, so that early results compare all variants."""
    return [
        Run(variant, kind, (place,), seed)
        for seed in seeds
        for kind, place, _ in in_place(kinds)
        for variant in variants
    ]


def finished(laboratory: Laboratory, kinds: Sequence[str], seeds: Sequence[int]) -> list[Variant]:
    """Return the variants with all runs."""
    return [one for one in VARIANTS if all(laboratory.path(run).exists() for run in runs([one], kinds, seeds))]


def relative_step_costs(laboratory: Laboratory, path: Path) -> dict[str, dict[str, float]]:
    """Return the relative times of a step and a prediction by variant, measured once and cached."""
    if path.exists():
        found: dict[str, dict[str, float]] = json.loads(path.read_bytes())
        return found
    kind, place, _ = in_place(tuple(PLACES))[0]
    tiles = laboratory.tiles(kind, place)
    own = [one for one in VARIANTS if one.lengthening == 1]
    ideas = [Idea(one.name, laboratory.recipe_of(Run(one, kind, (place,), 0)), one.rebuild or unchanged) for one in own]
    costs = relative_costs({idea.name: Runner.of(idea, tiles) for idea in ideas}, ROUNDS)
    write_json(path, costs)
    return costs


def unchanged(_network: Network) -> None:
    """Leave the network as it is."""


def training_cost(variant: Variant, costs: Mapping[str, Mapping[str, float]]) -> float:
    """Return the time of a training relative to that of smp's U-Net for as many steps as the default."""
    name = next(one.name for one in VARIANTS if one.lengthening == 1 and _same_step(one, variant))
    return variant.lengthening * costs[name][STEP] / costs[PEER.name][STEP]


def _same_step(one: Variant, other: Variant) -> bool:
    return (one.rebuild, one.train, one.model) == (other.rebuild, other.train, other.model)


def screen(
    laboratory: Laboratory, variants: Sequence[Variant], kinds: Sequence[str], seeds: Sequence[int]
) -> tuple[str, dict[str, float]]:
    """Return the table of all variants, and the difference of each from the default."""
    costs = relative_step_costs(laboratory, laboratory.folder / COSTS)
    scores: Callable[[Variant, Sequence[str]], Means] = lambda one, some: mean_iou(  # noqa: E731
        laboratory, one, in_place(some), seeds
    )
    rows, gains = [], {}
    for one in variants:
        found = scores(one, kinds)
        gains[one.name] = found.value - scores(DEFAULT, kinds).value
        shown = f"{found.value:.3f}" if one is DEFAULT else difference_text(found - scores(DEFAULT, kinds))
        each = [f"{scores(one, [kind]).value:.3f}" for kind in kinds]
        prediction = costs.get(one.name, {}).get(PREDICTION)
        cells = [f"{training_cost(one, costs):.2f}", f"{prediction:.2f}" if prediction else ""]
        rows.append([f"**{one.name}**" if one is DEFAULT else one.name, shown, *each, *cells])
    head = ["variant", "IoU, mean over places", *kinds, "training time, smp's U-Net = 1", "prediction, default = 1"]
    return page.table(head, rows), gains


def gain(laboratory: Laboratory, one: Variant, kinds: Sequence[str], seeds: Sequence[int]) -> Means:
    """Return the difference of a variant from the default."""
    own, default = (mean_iou(laboratory, each, in_place(kinds), seeds) for each in (one, DEFAULT))
    return own - default


def fresh_table(laboratory: Laboratory, chosen: Sequence[Variant], kinds: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the table of the chosen variants, each with those of the fresh seeds that have all of its runs."""
    done = {
        one.name: [seed for seed in seeds if {one.name, DEFAULT.name} <= names(finished(laboratory, kinds, [seed]))]
        for one in chosen
    }
    rows, variants = [], [one for one in chosen if done[one.name]]
    gains = [gain(laboratory, one, kinds, done[one.name]) for one in variants]
    corrected, levels = holm([found.p_value for found in gains])
    for one, found, level, p in zip(variants, gains, levels, corrected, strict=True):
        each = [f"{gain(laboratory, one, [kind], done[one.name]).value:+.3f}" for kind in kinds]
        rows.append([one.name, " ".join(map(str, done[one.name])), difference_text(found, level), f"{p:.3f}", *each])
    return page.table(["fresh seeds", "seeds", "IoU, difference from the default", "p", *kinds], rows)


def names(variants: Sequence[Variant]) -> set[str]:
    """Return the names of variants."""
    return {one.name for one in variants}


def main() -> None:
    """Train the missing runs and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with trees/, roads/ and landslides/")
    parser.add_argument("--weights", type=Path, required=True, help=f"encoder weights of timm's {ENCODER}")
    parser.add_argument("--folder", type=Path, default=Path("build/in-place"), help="where results are cached")
    parser.add_argument("--kinds", nargs="+", default=list(PLACES), choices=list(PLACES), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the screen (default 0)")
    parser.add_argument("--fresh-seeds", type=int, nargs="*", default=[1, 2], help="of the best three (default 1 2)")
    parser.add_argument("--finished", action="store_true", help="train nothing: tables of the finished runs")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/training.md")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    model = {"encoder": ENCODER, "weights": str(given.weights.resolve())}
    laboratory = Laboratory(given.data, given.folder, load_recipe(Path("default")).with_settings(model=model))
    kinds, seeds, fresh = tuple(given.kinds), tuple(given.seeds), tuple(given.fresh_seeds)
    if not given.finished:
        laboratory.fill(runs(VARIANTS, kinds, seeds))
    screened = finished(laboratory, kinds, seeds)
    table, gains = screen(laboratory, screened, kinds, seeds)
    print(table, flush=True)
    tables = [table]
    chosen = sorted((one for one in screened if one is not DEFAULT), key=lambda one: -gains[one.name])[:CONFIRMED]
    # smp's U-Net is what the default is measured by, so it is always among those with fresh seeds.
    chosen = chosen if PEER in chosen else [*chosen, PEER]
    if fresh and not given.finished:
        laboratory.fill(runs([DEFAULT, *chosen], kinds, fresh))
    if fresh:
        again = [kind for kind in kinds if names([DEFAULT, *chosen]) <= names(finished(laboratory, [kind], fresh))]
        tables.append(fresh_table(laboratory, chosen, again, fresh))
    about = f"Encoder: {ENCODER}. Screen: seed {' '.join(map(str, seeds))}. {machine.describe(('torch', 'timm'))}"
    content = "\n\n".join([*tables, about])
    print(content)
    if given.write:
        page.write_section("in-place", content, page.PAGE.with_name("training.md"))


if __name__ == "__main__":
    main()
