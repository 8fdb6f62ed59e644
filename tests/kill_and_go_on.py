"""Predict a map, killed by SIGKILL at each moment worth trying, then go on. Run by test_predict.py.

    python kill_and_go_on.py FOLDER

Every prediction is a process of its own, forked. FOLDER/whole is not interrupted; FOLDER/<moment> is, three times over.
Prints one line a moment: its name, the signal that ended the first process, and the rows that it had done.
"""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

from numpy import ndarray

from helpers import textured, write_raster
from mapping import COVERS, Contextual, make_run
from processes import Fuse, in_a_process

# Stands in for the learning library, which takes long to load.
sys.modules["tilth.learn.inference"] = types.ModuleType("tilth.learn.inference")
sys.modules["tilth.learn.inference"].Mapper = Contextual  # type: ignore[attr-defined]

from tilth.config import PredictConfig  # noqa: E402
from tilth.verbs.predict import predict  # noqa: E402

CONFIG = PredictConfig(batch_size=3, probabilities="uint8", uncertainty=True)


def killed_while_predicting(length: int) -> Callable[[], None]:
    def arm() -> None:
        fuse, call = Fuse(length), Contextual.__call__

        def burning(self: Contextual, pixels: ndarray, valid: ndarray) -> ndarray:
            fuse.burn()
            return call(self, pixels, valid)

        Contextual.__call__ = burning  # type: ignore[method-assign]

    return arm


def killed_at_file(length: int, after: bool) -> Callable[[], None]:
    """Return what arms a fuse on the moment before or after a finished file takes its place."""

    def arm() -> None:
        fuse, replace = Fuse(length), Path.replace

        def burning(self: Path, target: Path) -> Path:
            if not after:
                fuse.burn()
            result = replace(self, target)
            if after:
                fuse.burn()
            return result

        Path.replace = burning  # type: ignore[method-assign, assignment]

    return arm


def try_moment(folder: Path, name: str, arm: Callable[[], None]) -> str:
    """Kill a prediction twice at the same moment, let it come to its end, and say what the first kill left."""
    parts = folder / name / ".map.part"

    def doomed() -> None:
        arm()
        mapped(folder, name)

    ended_by = in_a_process(doomed)
    rows = json.loads((parts / "ledger.json").read_text(encoding="utf-8"))["rows_done"]
    in_a_process(doomed)
    if parts.exists():
        assert in_a_process(lambda: mapped(folder, name)) == 0
    return f"{name} {ended_by} {rows}"


def mapped(folder: Path, name: str) -> None:
    predict(folder / "run", (folder / "scene.tif",), folder / name / "map.tif", CONFIG)


def main(folder: Path) -> None:
    pixels = textured(3, 150, 130)
    pixels[:, 40:75] = 0
    write_raster(folder / "scene.tif", pixels, nodata=0)
    make_run(folder / "run", COVERS)
    assert in_a_process(lambda: mapped(folder, "whole")) == 0
    # Nine tiles a row are three calls. Files: the ledger; a strip and the ledger for each of ten rows of tiles; then
    # the ledger, the probabilities and the map.
    moments = {f"call-{n}": killed_while_predicting(n) for n in (1, 5, 12)}
    moments |= {f"before-file-{n}": killed_at_file(n, after=False) for n in (2, 3, 9, 22, 23, 24)}
    moments |= {f"after-file-{n}": killed_at_file(n, after=True) for n in (1, 2, 8, 22, 23, 24)}
    for name, arm in moments.items():
        sys.stdout.write(try_moment(folder, name, arm) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
