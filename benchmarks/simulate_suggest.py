"""Simulate active learning on a labelled archive: how many labels `geograft suggest` saves over random tiles.

    python benchmarks/simulate_suggest.py crowns [--seeds 24] [--rounds 9] [--write]
    python benchmarks/simulate_suggest.py forest --data ../shared/data/amazon --weights WEIGHTS

`crowns` is the demo's scene, cut into parts; `forest` are images and masks of the Amazon, by scene. For each seed a
third of the scenes (or parts) is held out for testing, and four tiles of the others are labelled at first. In each
round a head is trained on the labelled tiles and tested, and a batch of tiles is added: by `suggest`, by uncertainty
only, by diversity only, or at random. The encoder is frozen and its features are cached, so a training takes a second.
All strategies start from the same tiles.

The table shows how many tiles each strategy needs to reach the final IoU of random selection, and its gain in IoU over
the same number of random tiles, averaged over the rounds, with paired 95 % CIs from resampling seeds. --write puts it
into docs/suggest.md. Results are cached in --folder, so the same command resumes.
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
from archive import (
    CELL_PX,
    STRIDE,
    Archive,
    crowns_source,
    forest_source,
    iou,
    probabilities,
    read,
    train_head,
    write_archive,
)
from geograft.files import write_json
from geograft.geo.grid import Window
from geograft.mapping.classmap import entropy
from geograft.mapping.pool import Candidate, cell_means, pool_quarters, rank_candidates
from geograft.metrics.intervals import confidence_intervals

PAGE = Path(__file__).parents[1] / "docs" / "suggest.md"
FIRST, BATCH = 4, 4
TEST_FRACTION = 1 / 3
"""Fraction of the scenes that is held out for testing."""
EQUAL_UNCERTAINTY = 0.5
"""Uncertainty of every cell for the strategy that ignores it."""


@dataclass(frozen=True)
class State:
    """The input of a strategy."""

    archive: Archive
    pool: ndarray
    """Tiles that can be labelled."""
    labelled: ndarray
    uncertainty: ndarray
    """Mean entropy of the cells of each tile of the pool, (n, rows, cols)."""
    rng: np.random.Generator


def choose_random(state: State) -> ndarray:
    """Return a random batch."""
    return state.rng.permutation(state.pool)[:BATCH]


def choose_uncertain(state: State) -> ndarray:
    """Return the batch with the highest mean uncertainty."""
    return state.pool[np.argsort(-state.uncertainty.mean(axis=(1, 2)), kind="stable")[:BATCH]]


def choose_diverse(state: State) -> ndarray:
    """Return the batch that `geograft suggest` would choose if all cells were equally uncertain."""
    return _choose_by_suggest(state, np.full(state.uncertainty.shape, EQUAL_UNCERTAINTY))


def choose_suggested(state: State) -> ndarray:
    """Return the batch that `geograft suggest` chooses."""
    return _choose_by_suggest(state, state.uncertainty)


STRATEGIES: dict[str, Callable[[State], ndarray]] = {
    "random": choose_random,
    "uncertainty only": choose_uncertain,
    "diversity only": choose_diverse,
    "suggest": choose_suggested,
}


def _choose_by_suggest(state: State, uncertainty: ndarray) -> ndarray:
    """Return the batch that `geograft suggest` chooses, given the uncertainty of each tile's cells, (n, rows, cols)."""
    valid = np.ones(uncertainty.shape[1:], bool)
    candidates = [
        Candidate(
            0,
            Window(int(tile), 0, 1, 1),
            float(cell_uncertainty.mean()),
            1.0,
            *pool_quarters(cells, cell_uncertainty, valid),
        )
        for tile, cell_uncertainty, cells in zip(
            state.pool, uncertainty, state.archive.cell_features[state.pool], strict=True
        )
    ]
    return np.array([one.window.row for one in rank_candidates(candidates, BATCH)])


def curve(archive: Archive, strategy: str, seed: int, rounds: int) -> list[float]:
    """Return the IoU on the test scenes with the first tiles and after each round."""
    rng = np.random.default_rng(seed)
    scenes = rng.permutation(np.unique(archive.scenes))
    is_test = np.isin(archive.scenes, scenes[: round(TEST_FRACTION * len(scenes))])
    test, others = np.flatnonzero(is_test), np.flatnonzero(~is_test)
    labelled, found = rng.permutation(others)[:FIRST], []
    rng = np.random.default_rng([seed, 1])
    for number in range(rounds + 1):
        head = train_head(archive, labelled.tolist(), 1000 * seed + number)
        found.append(iou(head, archive, test))
        if number < rounds:
            pool = np.setdiff1d(others, labelled)
            uncertainty = _entropy(probabilities(head, archive, pool))
            state = State(archive, pool, labelled, cell_means(uncertainty, CELL_PX // STRIDE), rng)
            labelled = np.concatenate([labelled, STRATEGIES[strategy](state)])
    return found


def _entropy(probability: ndarray) -> ndarray:
    return np.concatenate([entropy(np.stack([1 - tile, tile])) for tile in probability])


def tiles_needed(means: ndarray, target: float) -> float:
    """Return the number of tiles at which a curve reaches `target`, by linear interpolation between rounds.

    The curve is made non-decreasing first, by isotonic regression, because a round can be worse by chance. If the curve
    never reaches `target`, the result is one batch more than the maximum: an underestimate, but it keeps every
    bootstrap sample.
    """
    smoothed = isotonic_regression(means).x
    tiles = FIRST + BATCH * np.arange(len(means))
    if smoothed[-1] < target:
        return float(tiles[-1] + BATCH)
    reached = int((smoothed >= target).argmax())
    if reached == 0:
        return float(tiles[0])
    fraction = (target - smoothed[reached - 1]) / (smoothed[reached] - smoothed[reached - 1])
    return float(tiles[reached - 1] + fraction * BATCH)


def tiles_saved(curves: ndarray) -> ndarray:
    """Return the tiles that random and another strategy need, and the fraction that the other saves, by draw.

    `curves` are sums over seeds, one row per draw: random's curve, the other's, and the number of seeds. The target is
    random's final IoU.
    """
    rows = []
    for row in curves:
        random, other = np.split(row[:-1] / row[-1], 2)
        target = float(isotonic_regression(random).x[-1])
        tiles = tiles_needed(random, target), tiles_needed(other, target)
        rows.append([*tiles, 1 - tiles[1] / tiles[0]])
    return np.array(rows)


def table_rows(results: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """Return one row per strategy: first, middle and last IoU, tiles needed and saved, and gain in IoU, with CIs."""
    seeds = sorted(set.intersection(*(set(curves) for curves in results.values())), key=int)
    random = np.array([results["random"][seed] for seed in seeds])
    rows = []
    for name, curves in results.items():
        own = np.array([curves[seed] for seed in seeds])
        curves_of_both = np.concatenate([random, own, np.ones((len(seeds), 1))], axis=1)
        (_, tiles, fraction), intervals = (
            tiles_saved(curves_of_both.sum(axis=0)[None])[0],
            confidence_intervals(curves_of_both, tiles_saved, draws=2000),
        )
        last = own.shape[1] - 1
        shown = [f"{own[:, i].mean():.3f}" for i in (0, last // 2, last)]
        max_tiles = FIRST + BATCH * last
        fewer = f"{fraction:.0%} ({intervals[2, 0]:.0%} to {intervals[2, 1]:.0%})" if tiles <= max_tiles else "none"
        needs = f"{tiles:.0f}" if tiles <= max_tiles else f"more than {max_tiles}"
        compared = ["", ""] if name == "random" else [fewer, mean_gain(own - random)]
        rows.append([name, *shown, needs, *compared])
    return rows


def mean_gain(gains: ndarray) -> str:
    """Return the mean gain in IoU over random, (seeds, rounds + 1), after the first tiles, with its CI."""
    counts = np.stack([gains[:, 1:].mean(axis=1), np.ones(len(gains))], axis=1)
    low, high = confidence_intervals(counts, lambda sums: sums[:, :1] / sums[:, 1:], draws=2000)[0]
    return f"{counts[:, 0].mean():+.3f} ({low:+.3f} to {high:+.3f})"


def _one(folder: Path, strategy: str, seed: int, rounds: int) -> tuple[str, int, list[float]]:
    return strategy, seed, curve(read(folder), strategy, seed, rounds)


def simulate(folder: Path, seeds: int, rounds: int, workers: int) -> dict[str, dict[str, list[float]]]:
    """Return the curves by strategy and seed on the archive in `folder`. Cached curves are not computed again."""
    path = folder / f"suggest-{rounds}.json"
    cached = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = {name: cached.get(name, {}) for name in STRATEGIES}
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
    """Run the simulation and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", choices=["crowns", "forest"])
    parser.add_argument("--data", type=Path, help="for forest: folder with images/ and masks/")
    parser.add_argument("--weights", type=Path, help="for forest: weights of tf_efficientnet_b0")
    parser.add_argument("--seeds", type=int, default=24, help="simulated seeds (default 24)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of labelling (default 9)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--folder", type=Path, default=Path("build/bench/suggest"), help="where results are cached")
    parser.add_argument("--write", action="store_true", help="put the table into docs/suggest.md")
    given = parser.parse_args(arguments)
    if given.archive == "forest" and not (given.data and given.weights):
        parser.error("forest needs --data and --weights")
    folder = given.folder / given.archive
    write_archive(crowns_source() if given.archive == "crowns" else forest_source(given.data, given.weights), folder)
    results = simulate(folder, given.seeds, given.rounds, given.workers)
    last = FIRST + BATCH * given.rounds
    middle = FIRST + BATCH * (given.rounds // 2)
    head = [
        "strategy",
        *(f"IoU at {n}" for n in (FIRST, middle, last)),
        "tiles needed",
        "saved vs random",
        "IoU gain vs random",
    ]
    text = page.table(head, table_rows(results)) + f"\n\n{given.seeds} seeds. {machine.describe(('torch', 'timm'))}"
    print(text)
    if given.write:
        PAGE.write_text(
            page.replace_section(PAGE.read_text(encoding="utf-8"), f"simulation of {given.archive}", text),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
