"""Compare whole commands, start included, on one core each: `geograft predict` and a plain loop with smp's U-Net.

    python benchmarks/bench_maps.py [--run RUN] [--pixels 6000] [--repeats 3] [--write]

Every map is made in a process of its own with one thread. Contestants alternate; ratios are within a round, of
processor seconds, which depend less on other load than wall time. The rasters are the scene inside the package and the
same scene mirrored until it is full; bench_windows.py has the IoU of windows. --write puts the tables into
docs/speed.md.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import page
from geograft.card import read_card
from measured import run_script
from models import trained_run
from rasters import SCENE, dense_raster

PLAIN = "smp"
PACKAGES = ("torch", "segmentation-models-pytorch", "onnxruntime", "openvino", "rasterio")
STAGES = ("import", "load", "read", "network", "blend", "write")


@dataclass
class Contestant:
    """One way to make a map, and what it cost."""

    name: str
    title: str
    window: tuple[int, int] | None = None
    """Size and overlap of its windows, if they are not the run's."""
    costs: list[dict[str, Any]] = field(default_factory=list)

    def median(self, what: str) -> float:
        """Return the median of a cost over the rounds."""
        return float(statistics.median(cost[what] for cost in self.costs))


def contestants(tile_px: int) -> list[Contestant]:
    """Return the contestants; the first one is the reference."""
    small = (tile_px, tile_px // 2)
    return [
        Contestant(PLAIN, "smp's U-Net, plain loop"),
        Contestant("smp-channels-last", "the same, channels last"),
        Contestant("default", "Geograft's network, plain loop"),
        Contestant("torch", "**geograft predict**, torch"),
        Contestant("onnx", "**geograft predict**, ONNX Runtime"),
        Contestant("openvino", "**geograft predict**, OpenVINO"),
        Contestant(f"openvino:{small[0]}:{small[1]}", "the same, windows of training tiles", small),
    ]


def race(entries: list[Contestant], run: Path, raster: Path, repeats: int) -> None:
    """Make the maps in turn. The first map of each backend, which exports its graph, does not count."""
    with tempfile.TemporaryDirectory() as folder:
        for entry in entries:
            if entry.name.split(":")[0] in ("onnx", "openvino"):
                run_script("whole_map.py", entry.name, str(run), str(SCENE), f"{folder}/first-{entry.name[:8]}.tif")
                (Path(folder) / f"first-{entry.name[:8]}.tif").unlink()
        for number in range(repeats):
            for entry in entries:
                out = Path(folder) / f"{number}-{entries.index(entry)}.tif"
                entry.costs.append(run_script("whole_map.py", entry.name, str(run), str(raster), str(out)))
                out.unlink()
                print(f"  {entry.title}: {entry.costs[-1]['cpu']:.1f} s", file=sys.stderr, flush=True)


def cost_table(entries: list[Contestant]) -> str:
    """Return the table of processor seconds, memory and stages."""
    reference = entries[0]
    rows = []
    for entry in entries:
        ratio = statistics.median(a["cpu"] / b["cpu"] for a, b in zip(reference.costs, entry.costs, strict=True))
        stages = [cost["stages"] for cost in entry.costs]
        by_stage = [
            f"{statistics.median(each.get(s, 0.0) for each in stages):.2f}" if stages[0] else "" for s in STAGES
        ]
        torch = "yes" if entry.costs[0]["torch"] else "no"
        cells = (f"{entry.median('cpu'):.1f}", f"{ratio:.1f}", f"{entry.median('peak_mb'):,.0f}", torch, *by_stage)
        rows.append([entry.title, *cells])
    head = ["", "processor seconds", "times as fast as smp", "peak memory, MB", "torch imported", *STAGES]
    return page.table(head, rows)


def arguments() -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="a finished run of the demo's tiles; default: train one")
    parser.add_argument("--pixels", type=int, default=6000, help="edge of the large raster; 0: none (default 6000)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where runs and rasters are cached")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/speed.md")
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    given = arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    run = given.run or trained_run(given.folder, 6)
    tile_px = read_card(run).tile_px
    about = f"{read_card(run).model.encoder}; one thread; medians of {given.repeats} rounds."
    parts = [f"{about} {machine.describe(PACKAGES)}"]
    rasters = {"The scene, 2,299 x 2,472 pixels:": SCENE}
    if given.pixels:
        large = dense_raster(given.folder / f"dense-{given.pixels}.tif", given.pixels)
        rasters[f"{given.pixels:,} x {given.pixels:,} pixels:"] = large
    for title, raster in rasters.items():
        entries = contestants(tile_px)
        race(entries, run, raster, given.repeats if raster == SCENE else 1)
        parts.append(f"{title}\n\n{cost_table(entries)}")
        print("\n\n".join(parts[-1:]), flush=True)
    content = "\n\n".join(parts)
    print(f"\n{content}")
    if given.write:
        page.write_section("maps", content)


if __name__ == "__main__":
    main()
