"""The cases of scripts/fuzz_inputs.py with jobs of workers, whose folder was damaged or edited."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fuzz_files as f
import fuzz_geodata as g
import numpy as np
from fuzz_files import ACCEPTED, REFUSED, SAME, Case
from fuzz_own_files import WAYS, broken_json, edited_entries

SIDE = 2080
"""Side of the map whose polygons four workers may trace: units have at least 2,048 pixels."""
MAP = f.command("predict run scene.tif --out job --worker --one-file", "run", "scene.tif", "job", options=f.TORCH)
POLYGONS = f.command("polygons wide.tif --out traced --worker --file p.geojson", "wide.tif", "traced")
OF_MAP = f.command("polygons job --out p.geojson", "job")
LISTED, CLEANED = f.command("jobs traced", "traced"), f.command("jobs job --clean", "job")
RESULT = "traced/state/result.done.json"
UNIT = "r00000-c00000"


def write_jobs(folder: Path, run: Callable[..., Any]) -> None:
    """Write a job of a map, and one of polygons whose units are done and whose file is not there."""
    values = np.random.default_rng(0).integers(0, 3, (26, 26), dtype=np.uint8).repeat(80, 0).repeat(80, 1)
    f.write_raster(folder / "wide.tif", values[None])
    for command, name in ((MAP, "job"), (POLYGONS, "traced")):
        outcome = run(command.arguments, folder)
        if outcome.code:
            raise RuntimeError(f"no job of workers in {name}: {outcome.stderr}")
    for made in (folder / RESULT, folder / "traced" / "p.geojson", folder / "job" / "map.tif"):
        made.unlink()


def job_cases(inputs: Path) -> Iterator[Case]:
    """Edit, damage and remove the files of jobs."""
    for name, command in {
        "map": MAP,
        "polygons": POLYGONS,
        "list": LISTED,
        "clean": CLEANED,
        "its map": OF_MAP,
    }.items():
        yield Case("job", f"unchanged, {name}", command, expected=ACCEPTED)
    wrong = {
        "units": ({"counts": [1]}, {"height": 10, "width": 10, "unit_px": 10}),
        "unit_px": (0, -1, 7, 10**12),
        "height": (0, 10**9),
        "verb": ("predict", "evaluate", "nonsense"),
        "layout": (0, 2),
        "sample": ("../scene.tif", "missing.npz"),
        "files": ({"../../scene.tif": 9}, {"missing.npz": 9}),
        "digest": ("0" * 64,),
        "unit": ("r00001-c00001",),
    }
    for name, commands in (
        ("traced/job.json", (POLYGONS,)),
        ("job/job.json", (MAP, OF_MAP)),
        (f"traced/state/{UNIT}.done.json", (POLYGONS,)),
        (f"job/state/{UNIT}.done.json", (MAP, OF_MAP)),
        ("job/summary.json", (OF_MAP, MAP)),
    ):
        yield from edited_entries("job", name, inputs, commands, wrong)
        for label, content in broken_json():
            yield Case("job", f"{label} as {name}", commands[0], f.replaced(name, content))
    for label, content in broken_json():
        yield Case("job", f"{label} as the result", POLYGONS, f.replaced(RESULT, content), expected=REFUSED)
        for kind in ("failed-1", "lease-1"):
            edit = f.replaced(f"job/state/{UNIT}.{kind}.json", content)
            yield Case("job", f"{label} as {kind}", LISTED, edit)
    yield from _of_files(inputs)


def _of_files(inputs: Path) -> Iterator[Case]:
    for folder, commands in (("traced", (POLYGONS,)), ("job", (MAP, OF_MAP))):
        # GDAL reads a .tif without the statistics beside it.
        units = (path for path in (inputs / folder / "units").iterdir() if path.suffix in (".tif", ".npz"))
        for number, path in enumerate(sorted(units)):
            name, command = f"{folder}/units/{path.name}", commands[number % len(commands)]
            for way in WAYS:
                yield Case("job", f"{name}: {way}", command, f.damaged(name, way), expected=SAME)
            yield Case("job", f"without {name}", command, g.removed(name), expected=REFUSED)
            for label, content in _other_files().items():
                yield Case("job", f"{label} as {name}", command, f.replaced(name, content), expected=REFUSED)
        (receipt, *_) = sorted((inputs / folder / "state").glob("*.done.json"))
        yield Case("job", f"{folder} without {receipt.name}", commands[0], g.removed(f"{folder}/state/{receipt.name}"))
    removed: Sequence[str] = ("job.json", "units", "state")
    for name in removed:
        yield Case("job", f"without {name}", POLYGONS, g.removed(f"traced/{name}"))
    yield Case("job", "without the sample", MAP, _without_samples)


def _other_files() -> dict[str, bytes]:
    """Return contents of files that are no arrays, or arrays of Python objects."""
    objects = io.BytesIO()
    np.savez(objects, held=np.array([{"a": 1}], object))
    return {"nothing": b"", "a pickle": b"cos\nsystem\n(S'touch PAYLOAD'\ntR.", "objects": objects.getvalue()}


def _without_samples(place: f.Place) -> None:
    job = place.folder / "job"
    (job / json.loads((job / "job.json").read_text())["sample"]).unlink()
