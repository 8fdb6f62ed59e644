"""Predict a map, killed by SIGKILL at each moment worth trying, then go on. Run by test_predict.py.

    python -m tests.support.kill_predict FOLDER

Every prediction is a process of its own, forked. FOLDER/whole is not interrupted; FOLDER/<moment> is, three times over.
Prints one line a moment: its name, the signal that ended the first process, and the strips that it had finished.
"""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.processes import killed_at, run_in_child
from tests.support.rasters import textured, write_raster
from tests.support.runs import COVERS, ContextPredictor, MeanEmbedder, make_run

# Stands in for the learning library, which takes long to load.
sys.modules["geograft.inference.embedding"] = types.ModuleType("geograft.inference.embedding")
sys.modules["geograft.inference.embedding"].CellEncoder = MeanEmbedder  # type: ignore[attr-defined]
sys.modules["geograft.inference.embedding"].load_cell_encoder = lambda *_: MeanEmbedder()  # type: ignore[attr-defined]

import geograft.mapping.models  # noqa: E402
import geograft.mapping.plan  # noqa: E402
from geograft.card import FEATURES_FILE  # noqa: E402
from geograft.commands.predict import predict  # noqa: E402
from geograft.config import PredictConfig  # noqa: E402
from geograft.metrics.applicability import fit_applicability  # noqa: E402

CONFIG = PredictConfig(batch_size=3, probabilities="float16", uncertainty=True, applicability=True)
geograft.mapping.models.EnsemblePredictor = ContextPredictor  # type: ignore[misc, assignment]
# Two panels of four or five columns of tiles.
geograft.mapping.plan.panel_width = lambda *_: 80


def calls(folder: Path, owner: type, name: str) -> int:
    """Return how often a prediction that is not interrupted calls a method."""

    def counted() -> None:
        found, method = [0], getattr(owner, name)

        def counting(*args: Any, **options: Any) -> Any:
            found[0] += 1
            return method(*args, **options)

        setattr(owner, name, counting)
        mapped(folder, f"counted-{name}")
        (folder / f"counted-{name}" / "count.json").write_text(json.dumps(found[0]))

    assert run_in_child(counted) == 0
    number: int = json.loads((folder / f"counted-{name}" / "count.json").read_text())
    return number


def try_moment(folder: Path, name: str, arm: Callable[[], None]) -> str:
    """Kill a prediction twice at the same moment, let it come to its end, and say what the first kill left."""
    strips = folder / name / ".map.part" / "strips.tsv"

    def doomed() -> None:
        arm()
        mapped(folder, name)

    ended_by = run_in_child(doomed)
    finished = len(strips.read_text(encoding="ascii").splitlines()) - 1 if strips.exists() else 0
    if strips.parent.exists():
        run_in_child(doomed)
    if strips.parent.exists():
        assert run_in_child(lambda: mapped(folder, name)) == 0
    return f"{name} {ended_by} {finished}"


def mapped(folder: Path, name: str) -> None:
    predict(folder / "run", (folder / "scene.tif",), folder / name / "map.tif", CONFIG)


def main(folder: Path) -> None:
    pixels = textured(3, 110, 130)
    pixels[:, 30:65] = 0
    write_raster(folder / "scene.tif", pixels, nodata=0)
    make_run(folder / "run", COVERS)
    fit_applicability(np.random.default_rng(0).normal(128, 30, (40, 3))).write(folder / "run" / FEATURES_FILE)
    assert run_in_child(lambda: mapped(folder, "whole")) == 0
    batches, files = calls(folder, ContextPredictor, "__call__"), calls(folder, Path, "replace")
    # Without the lock, which goes after the ledger; a kill in between leaves a file that stops nobody.
    removed = calls(folder, Path, "unlink") - 1
    moments = {f"batch-{n}": killed_at(ContextPredictor, "__call__", n) for n in (1, batches // 2, batches)}
    # The last are the complete ledger; style and raster of the probabilities, the uncertainty and the area of
    # applicability; and the names, the style and the map.
    ends = (files - 9, files - 7, files - 5, files - 3, files - 2, files - 1, files)
    moments |= {f"before-file-{n}": killed_at(Path, "replace", n) for n in (2, 3, files // 2, *ends)}
    moments |= {f"after-file-{n}": killed_at(Path, "replace", n, after=True) for n in (1, 2, files // 3, *ends)}
    # The last files to go are strips and, at the very end, the ledger.
    moments |= {f"removed-{n}": killed_at(Path, "unlink", n) for n in (removed - 5, removed)}
    for name, arm in moments.items():
        sys.stdout.write(try_moment(folder, name, arm) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
