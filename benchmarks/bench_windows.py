"""Compare windows of `geograft predict`: IoU of the map, processor seconds and memory, on held-out blocks and scenes.

    python benchmarks/bench_windows.py [--data ../shared/data/amazon] [--folder build/windows] [--write]

Each set is prepared and trained with the demo's recipe, if that was not done before: the tree crowns of the package;
the same crowns in two classes by size (three classes in all); and, with --data, forest in Sentinel-2 scenes. IoU is
that of `geograft evaluate` on the test tiles, and of the package's other scene, with one thread. Each figure is from a
process of its own, whose backend was chosen before. --write puts the tables into docs/speed.md.
"""

import argparse
import json
import resource
import sys
import tempfile
from pathlib import Path

import machine
import page
from geograft import EvaluateConfig, MaskSource, VectorSource, evaluate, load_recipe
from geograft.config import Recipe
from measured import peak_mb, run_script
from rasters import SCENE

SMALL_CROWN_M2 = 6
WINDOWS = ((160, 80), (320, 80), (640, 40), (640, 80), (640, 160), (1280, 80), (1280, 160))
"""Size and overlap in pixels. The first is the size of the training tiles, at half overlap."""


def crown_sizes(scene: Path, folder: Path) -> Path:
    """Write the crowns of a scene with a field `size`: small or large; return the path."""
    import geopandas

    path = folder / f"{scene.stem}-size.gpkg"
    if not path.exists():
        crowns = geopandas.read_file(scene.with_suffix(".gpkg"))
        crowns["size"] = ["small" if area < SMALL_CROWN_M2 else "large" for area in crowns.geometry.area]
        crowns.to_file(path)
    return path


def prepared(folder: Path, source: VectorSource | MaskSource, recipe: Recipe) -> Path:
    """Return a tile set, made if it is missing."""
    from geograft import prepare

    if not folder.exists():
        prepare(source, folder, recipe.prepare)
    return folder


def crowns(folder: Path, recipe: Recipe, field: str) -> dict[str, Path]:
    """Return the tile sets of the package's two scenes with the crowns in the classes of `field`."""
    from geograft.commands.demo import ALL_TEST

    found = {}
    for name, scene, own in (
        ("held-out blocks", SCENE, recipe),
        ("other scene", SCENE.with_name("elsewhere.tif"), recipe.with_settings(prepare=ALL_TEST)),
    ):
        labels = scene.with_suffix(".gpkg") if field == "class" else crown_sizes(scene, folder)
        source = VectorSource((scene,), labels, class_field=field)
        found[name] = prepared(folder / f"{field}-{scene.stem}", source, own)
    return found


def sets(folder: Path, recipe: Recipe, data: Path | None) -> dict[str, dict[str, Path]]:
    """Return the tile sets by name: those to score by what they are; the first one is also trained on."""
    found = {"crowns": crowns(folder, recipe, "class"), "crowns by size": crowns(folder, recipe, "size")}
    if data is not None:
        source = MaskSource(data / "images", data / "masks", classes={1: "forest", 2: "other"}, skip_mismatched=True)
        by_scene = recipe.with_settings(prepare={"split": "scene", "tile_px": 128})
        found["forest"] = {"held-out scenes": prepared(folder / "forest", source, by_scene)}
    return found


def score(run: Path, tiles: Path, size: int, overlap: int) -> dict[str, float]:
    """Return IoU, processor seconds and peak memory of an evaluation with windows, in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    config = EvaluateConfig(window_px=size, overlap=overlap / size)
    with tempfile.TemporaryDirectory() as scratch:
        result = evaluate(run, "test", tiles, Path(scratch) / "scores.json", config=config)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"iou": result.headline["iou"].value, "seconds": seconds, "peak_mb": peak_mb()}


def table(run: Path, parts: dict[str, Path], scale: float) -> str:
    """Return the table of one set; windows are multiplied by `scale`, the ratio of its tiles to the crowns'."""
    rows = []
    for size, overlap in ((round(one * scale), round(other * scale)) for one, other in WINDOWS):
        cells = []
        for tiles in parts.values():
            arguments = ("--score", str(run), str(tiles), str(size), str(overlap))
            run_script("bench_windows.py", *arguments)  # chooses the backend
            found = run_script("bench_windows.py", *arguments)
            cells += [f"{found['iou']:.4f}", f"{found['seconds']:.1f}", f"{found['peak_mb']:,.0f}"]
        rows.append([f"{size} px, overlap {overlap} px", *cells])
        print(rows[-1], file=sys.stderr, flush=True)
    head = ["windows", *(text for name in parts for text in (f"IoU, {name}", "seconds", "memory, MB"))]
    return page.table(head, rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with images/ and masks/ of forest")
    parser.add_argument("--folder", type=Path, default=Path("build/windows"), help="where sets and runs are cached")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/speed.md")
    parser.add_argument("--score", nargs=4, metavar=("RUN", "TILES", "SIZE", "OVERLAP"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.score:
        run, tiles, size, overlap = given.score
        print("\n" + json.dumps(score(Path(run), Path(tiles), int(size), int(overlap))))
        return
    # Not imported above: the processes that score need no torch.
    from geograft import train
    from geograft.commands.demo import with_weights
    from models import is_finished

    given.folder.mkdir(parents=True, exist_ok=True)
    recipe, weights_from = with_weights(load_recipe(Path("demo")).with_settings(train={"calibrate": False}))
    parts = [f"Encoder weights: {weights_from}. {machine.describe(('torch', 'onnxruntime', 'openvino'))}"]
    for name, tile_sets in sets(given.folder, recipe, given.data).items():
        run, tiles = given.folder / f"run-{name.replace(' ', '-')}", next(iter(tile_sets.values()))
        if not is_finished(run):
            train(tiles, run, recipe, resume=True)
        parts.append(f"{name.capitalize()}:\n\n{table(run, tile_sets, 0.8 if name == 'forest' else 1.0)}")
    content = "\n\n".join(parts)
    print(content)
    if given.write:
        page.write_section("windows", content)


if __name__ == "__main__":
    main()
