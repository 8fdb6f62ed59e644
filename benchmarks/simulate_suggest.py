"""How many labels `geograft suggest` saves: an archive whose labels are hidden and bought back tile by tile.

    python benchmarks/simulate_suggest.py crowns [--seeds 24] [--rounds 9] [--write]
    python benchmarks/simulate_suggest.py forest --data ../shared/data/amazon --weights WEIGHTS

`crowns` is the demo's scene, cut into parts; `forest` are images and masks of the Amazon, by scene. For each seed, a
third of these is kept for scoring and a few tiles of the others are labelled. In each round a head is trained on what
is labelled (the encoder is frozen and what it sees is kept, so this takes a second), scored, and a batch of tiles is
added: by `suggest`, by doubt alone, by looks alone, or at random. All begin with the same ones.

The table says how many tiles each needs for the IoU that random tiles come to at last, and how far its IoU lies above
that of as many random tiles in the mean of all rounds, with 95 % intervals over the seeds, resampled whole and paired.
--write puts it into docs/suggest.md. Results are kept in build/bench; the same command goes on from there.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy import ndarray
from scipy.optimize import isotonic_regression

import machine
import page
from archive import CELL_PX, STRIDE, Archive, crowns, forest, iou, made, probabilities, read, trained
from geograft.commands.suggest import rank_candidates
from geograft.files import write_json
from geograft.geo.grid import Window
from geograft.inference.uncertainty import entropy
from geograft.mapping.pool import Candidate, cell_means, pool_quarters
from geograft.metrics.intervals import confidence_intervals

PAGE = Path(__file__).parents[1] / "docs" / "suggest.md"
FIRST, BATCH = 4, 4
SCORED = 1 / 3
"""Share of the scenes that is kept for scoring."""
DOUBTLESS = 0.5
"""Doubt of every cell where only looks shall count."""


@dataclass(frozen=True)
class State:
    """What a strategy may look at."""

    ground: Archive
    pool: ndarray
    """Tiles that may be labelled."""
    labelled: ndarray
    doubt: ndarray
    """Mean entropy of the cells of each tile of the pool, (n, rows, cols)."""
    rng: np.random.Generator


def at_random(state: State) -> ndarray:
    """Return a batch drawn at random."""
    return state.rng.permutation(state.pool)[:BATCH]


def by_doubt(state: State) -> ndarray:
    """Return the batch of the most doubtful tiles."""
    return state.pool[np.argsort(-state.doubt.mean(axis=(1, 2)), kind="stable")[:BATCH]]


def by_looks(state: State) -> ndarray:
    """Return the batch that `geograft suggest` would return were all tiles equally doubtful."""
    return _suggested(state, np.full(state.doubt.shape, DOUBTLESS))


def suggested(state: State) -> ndarray:
    """Return the batch that `geograft suggest` returns."""
    return _suggested(state, state.doubt)


STRATEGIES: dict[str, Callable[[State], ndarray]] = {
    "random": at_random,
    "doubt alone": by_doubt,
    "looks alone": by_looks,
    "suggest": suggested,
}


def _suggested(state: State, doubt: ndarray) -> ndarray:
    """Return the batch that `geograft suggest` returns for the doubt of the cells of each tile, (n, rows, cols)."""
    seen = np.ones(doubt.shape[1:], bool)
    candidates = [
        Candidate(0, Window(int(tile), 0, 1, 1), float(unsure.mean()), 1.0, *pool_quarters(cells, unsure, seen))
        for tile, unsure, cells in zip(state.pool, doubt, state.ground.cells[state.pool], strict=True)
    ]
    return np.array([one.window.row for one in rank_candidates(candidates, BATCH)])


def curve(ground: Archive, strategy: str, seed: int, rounds: int) -> list[float]:
    """Return the IoU on scenes kept for scoring after each round, from the first few tiles on."""
    rng = np.random.default_rng(seed)
    scenes = rng.permutation(np.unique(ground.scenes))
    kept = np.isin(ground.scenes, scenes[: round(SCORED * len(scenes))])
    scored, others = np.flatnonzero(kept), np.flatnonzero(~kept)
    labelled, found = rng.permutation(others)[:FIRST], []
    rng = np.random.default_rng([seed, 1])
    for number in range(rounds + 1):
        head = trained(ground, labelled.tolist(), 1000 * seed + number)
        found.append(iou(head, ground, scored))
        if number < rounds:
            pool = np.setdiff1d(others, labelled)
            doubt = entropy(_views(probabilities(head, ground, pool)))
            state = State(ground, pool, labelled, cell_means(doubt, CELL_PX // STRIDE), rng)
            labelled = np.concatenate([labelled, STRATEGIES[strategy](state)])
    return found


def _views(likely: ndarray) -> ndarray:
    return np.stack([1 - likely, likely], axis=1)[None]


def needed(means: ndarray, target: float) -> float:
    """Return how many tiles bring a curve to `target`, between rounds by straight lines.

    Where none of those tried do, a batch more than these: too few, but no draw of the interval is left out.
    The curve is made to rise first, by isotonic regression: a round that is worse by chance is no reason to label less.
    """
    rising = isotonic_regression(means).x
    tiles = FIRST + BATCH * np.arange(len(means))
    if rising[-1] < target:
        return float(tiles[-1] + BATCH)
    after = int((rising >= target).argmax())
    if after == 0:
        return float(tiles[0])
    share = (target - rising[after - 1]) / (rising[after] - rising[after - 1])
    return float(tiles[after - 1] + share * BATCH)


def saved(curves: ndarray) -> ndarray:
    """Return how many tiles random and another strategy need, and the share that the other saves, by draw.

    `curves` are sums over seeds, (draws, 2 * rounds + 1): random's, the other's, and the number of seeds. The target is
    what random comes to at last.
    """
    rows = []
    for row in curves:
        random, other = np.split(row[:-1] / row[-1], 2)
        target = float(isotonic_regression(random).x[-1])
        tiles = needed(random, target), needed(other, target)
        rows.append([*tiles, 1 - tiles[1] / tiles[0]])
    return np.array(rows)


def rows_of(results: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """Return a row a strategy: IoU at first, in the middle and at last, tiles needed and saved, with intervals."""
    seeds = sorted(set.intersection(*(set(curves) for curves in results.values())), key=int)
    random = np.array([results["random"][seed] for seed in seeds])
    rows = []
    for name, curves in results.items():
        mine = np.array([curves[seed] for seed in seeds])
        both = np.concatenate([random, mine, np.ones((len(seeds), 1))], axis=1)
        (_, tiles, share), ends = saved(both.sum(axis=0)[None])[0], confidence_intervals(both, saved, draws=2000)
        last = mine.shape[1] - 1
        shown = [f"{mine[:, i].mean():.3f}" for i in (0, last // 2, last)]
        most = FIRST + BATCH * last
        fewer = f"{share:.0%} ({ends[2, 0]:.0%} to {ends[2, 1]:.0%})" if tiles <= most else "none"
        needs = f"{tiles:.0f}" if tiles <= most else f"more than {most}"
        compared = ["", ""] if name == "random" else [fewer, above(mine - random)]
        rows.append([name, *shown, needs, *compared])
    return rows


def above(gains: ndarray) -> str:
    """Return the mean of IoU gained on random, (seeds, rounds + 1), after the first few tiles, with its interval."""
    counts = np.stack([gains[:, 1:].mean(axis=1), np.ones(len(gains))], axis=1)
    low, high = confidence_intervals(counts, lambda sums: sums[:, :1] / sums[:, 1:], draws=2000)[0]
    return f"{counts[:, 0].mean():+.3f} ({low:+.3f} to {high:+.3f})"


def _one(folder: Path, strategy: str, seed: int, rounds: int) -> tuple[str, int, list[float]]:
    return strategy, seed, curve(read(folder), strategy, seed, rounds)


def simulated(folder: Path, seeds: int, rounds: int, workers: int) -> dict[str, dict[str, list[float]]]:
    """Return the curves by strategy and seed on the archive in `folder`; what that holds of them is not done again."""
    path = folder / f"suggest-{rounds}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {name: {} for name in STRATEGIES}
    missing = [(name, seed) for seed in range(seeds) for name in STRATEGIES if str(seed) not in found[name]]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        running = [processes.submit(_one, folder, name, seed, rounds) for name, seed in missing]
        for number, done in enumerate(as_completed(running), start=1):
            name, seed, ious = done.result()
            found[name][str(seed)] = ious
            write_json(path, found)
            print(f"{number}/{len(missing)}: seed {seed}, {name}: {ious[0]:.3f} to {ious[-1]:.3f}", flush=True)
    return {name: {seed: found[name][seed] for seed in map(str, range(seeds))} for name in STRATEGIES}


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ground", choices=["crowns", "forest"])
    parser.add_argument("--data", type=Path, help="of forest: folder with images/ and masks/")
    parser.add_argument("--weights", type=Path, help="of forest: weights of tf_efficientnet_b0")
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/bench/suggest"))
    parser.add_argument("--write", action="store_true", help="put the table into docs/suggest.md")
    given = parser.parse_args(arguments)
    if given.ground == "forest" and not (given.data and given.weights):
        parser.error("forest needs --data and --weights")
    folder = given.folder / given.ground
    made(crowns() if given.ground == "crowns" else forest(given.data, given.weights), folder)
    results = simulated(folder, given.seeds, given.rounds, given.workers)
    last = FIRST + BATCH * given.rounds
    middle = FIRST + BATCH * (given.rounds // 2)
    head = [
        "tiles chosen",
        *(f"IoU at {n}" for n in (FIRST, middle, last)),
        "tiles needed",
        "fewer than random",
        "IoU above random",
    ]
    text = page.table(head, rows_of(results)) + f"\n\n{given.seeds} seeds. {machine.described(('torch', 'timm'))}"
    print(text)
    if given.write:
        PAGE.write_text(
            page.replaced(PAGE.read_text(encoding="utf-8"), f"simulation of {given.ground}", text), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
