"""The cases of scripts/fuzz_inputs.py with files that geograft wrote: runs, tile sets, and what a killed process left."""

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_files as f
import fuzz_geodata as g
import numpy as np
from fuzz_files import ACCEPTED, ANY, REFUSED, SAME, Case, Edit, Place

NAN, INF = float("nan"), float("inf")
WRONG_KIND = ("text", None, [], {}, NAN, INF, -INF)
FREE_TEXT = {"name", "names", "calibrated", "weights_from", "data_fingerprint", "versions", "started_by", "about"}
WAYS = ("flip", "flip", "flip", "cut", "drop", "zero")


# ----------------------------------------------------------------------------------------------------------------- JSON


def card_cases(inputs: Path) -> Iterator[Case]:
    """Edit every entry of a run's card: to another kind of value, or out of its range."""
    wrong = {
        "temperature": (-1, 0, 1e-320),
        "threshold": (-0.1, 1.5),
        "tile_px": (0, -32, 10**9, 32.5, 17),
        "resolution_m": (0, -1),
        "epoch": (-1, 0, 1.5),
        "epochs": (-1, 1.5),
        "std": ([0, 1, 1], [1, -1, 1], [1, 1]),
        "mean": ([1, 1], [1] * 3000),
        "band_names": ([], ["a"] * 3000, ["a", "a", "a"]),
        "dtype": ("complex64", "object"),
        "thresholds": ([2.0], [0.5] * 9),
        "indices": ([{"name": "x", "expression": "b9/b1"}], ["__import__('os')"]),
    }
    yield from edited_entries("card", "run/card.json", inputs, (f.EVALUATE, f.PREDICT), wrong)
    for name, content in broken_json():
        yield Case("card", f"{name} as card.json", f.EVALUATE, f.replaced("run/card.json", content), expected=REFUSED)


def tileset_cases(inputs: Path) -> Iterator[Case]:
    """Edit every entry of a tile set's settings."""
    wrong = {
        "scenes": ([], {}, None),
        "height": (-5, 0, 10**9),
        "width": (-5, 10**9),
        "bands": (-1, 0, 3000),
        "tile_px": (0, 10**9),
        "mean": ([1, 1],),
        "std": ([0, 0, 0], [1, 1]),
        "resolution_m": (0, -1),
        "names": ([], ["a"]),
        "crs": ("nonsense",),
        "transform": ([0] * 6, [NAN] * 6, [1e300] * 6, [1, 2, 2, 1, 2, 2]),
        "image": ("../../missing.tif", "{server}/a.tif"),
    }
    commands = (f.AUDIT, f.EVALUATE, f.TRAIN)
    yield from edited_entries("tileset", "tiles/tileset.json", inputs, commands, wrong)
    for name, content in broken_json():
        yield Case(
            "tileset", f"{name} as tileset.json", f.AUDIT, f.replaced("tiles/tileset.json", content), expected=REFUSED
        )
    for name in ("tileset.json", "tiles.gpkg", "masks"):
        yield Case("tileset", f"without {name}", f.EVALUATE, g.removed(f"tiles/{name}"), expected=REFUSED)


def edited_entries(
    family: str, name: str, inputs: Path, commands: tuple[f.Command, ...], wrong: dict[str, tuple[Any, ...]]
) -> Iterator[Case]:
    """Yield a case for each entry of a JSON file and each wrong value, and those in `wrong` by the entry's name.

    An entry that a command does not use may stay unnoticed: the result is then the same.
    """
    content = json.loads((inputs / name).read_text())
    edits = [
        (path, value) for number, (path, _) in enumerate(f.leaves(content)) for value in WRONG_KIND[number % 3 :: 3]
    ]
    places = {path[:end] for path, _ in f.leaves(content) for end in range(1, len(path) + 1)}
    edits += [(path, value) for path in sorted(places, key=str) for value in wrong.get(str(path[-1]), ())]
    for number, (path, value) in enumerate(edits):
        label = f"{Path(name).name} {'.'.join(map(str, path))} = {str(value)[:40]}"
        # A missing image is a note of audit, and text may be any.
        free = path[-1] == "image" or (value == "text" and FREE_TEXT & set(path))
        expected = ANY if free else SAME
        yield Case(family, label, commands[number % len(commands)], f.edited_json(name, path, value), expected=expected)


def broken_json() -> Iterator[tuple[str, str]]:
    """Yield files that are no JSON object, or a very deep one."""
    yield from {
        "an empty file": "",
        "a list": "[]",
        "null": "null",
        "a number": "1e999",
        "an empty object": "{}",
        "half an object": '{"name": "run"',
        "a deep list": "[" * 100_000,
        "a byte order mark": "\ufeff{}",
        "an unknown key": '{"nonsense": 1}',
        "zero bytes": "\0" * 100,
        "a large number": "9" * 10_000,
    }.items()


# ------------------------------------------------------------------------------------- other files that geograft wrote


def index_cases() -> Iterator[Case]:
    """Edit the table of tiles."""
    columns = ("row", "col", "split", "scene", "valid")
    values = ("-50", "1000000000", "1e300", "'text'", "NULL", "x'00ff'", "9223372036854775807", "0.5")
    commands = (f.EVALUATE, f.AUDIT, f.TRAIN)
    edits = [
        (f"{column} = {value}", f"UPDATE TABLE_ SET {column} = {value} WHERE fid % 7 = 0")
        for column in columns
        for value in values
        if (column, value) != ("valid", "0.5")
    ]
    edits += [(f"without {column}", f"ALTER TABLE TABLE_ DROP COLUMN {column}") for column in columns]
    edits += [
        ("no rows", "DELETE FROM TABLE_"),
        ("no training tiles", "DELETE FROM TABLE_ WHERE split = 'train'"),
        ("no geometry", "UPDATE TABLE_ SET geom = NULL"),
        ("no table", "DROP TABLE TABLE_"),
        ("a tile twice", "UPDATE TABLE_ SET (row, col) = (SELECT row, col FROM TABLE_ WHERE fid = 1) WHERE fid = 2"),
    ]
    for number, (name, statement) in enumerate(edits):
        edit = f.edited_table("tiles/tiles.gpkg", statement)
        expected = ANY if "no training tiles" in name else SAME
        yield Case("index", name, commands[number % len(commands)], edit, expected=expected)


def history_cases() -> Iterator[Case]:
    """Edit history.csv, for the report and for a training that is resumed."""

    def columns(change: Any) -> Edit:
        def edit(place: Place) -> None:
            path = next(place.folder.glob("*/history.csv"))
            header, *rows = path.read_text().splitlines()
            path.write_text("\n".join(change([header, *rows])) + "\n")

        return edit

    ways = {
        "no rows": lambda lines: lines[:1],
        "no header": lambda lines: lines[1:],
        "empty": lambda lines: [],
        "a row twice": lambda lines: [*lines, lines[-1]],
        "epoch -1": lambda lines: [lines[0], "-1" + lines[1][1:]],
        "text": lambda lines: [lines[0], "x" + lines[1][1:]],
        "infinite": lambda lines: [lines[0], lines[1].replace("0.", "1e999", 1)],
        "a column less": lambda lines: [line.rpartition(",")[0] for line in lines],
        "a huge cell": lambda lines: [lines[0], "1" * 200_000],
        "zero bytes": lambda lines: ["\0" * 99],
        "a million rows": lambda lines: [lines[0], *[lines[1]] * 10**5],
    }
    for name, change in ways.items():
        # A validation loss may be infinite.
        expected = ANY if name == "infinite" else REFUSED
        yield Case("history", f"{name}, report", f.REPORT, columns(change), expected=expected)
        yield Case("history", f"{name}, train --resume", f.RESUME, columns(change), expected=SAME)
    yield Case("history", "no file, report", f.REPORT, g.removed("run/history.csv"), expected=REFUSED)
    for name, content in broken_json():
        edit = f.replaced("run/scores-test.json", content)
        yield Case("history", f"{name} as scores-test.json", f.REPORT, edit, expected=SAME)


def weights_cases() -> Iterator[Case]:
    """Replace weights by other ones, by files that are none, and by a pickle with a payload."""

    def tensors(change: Any) -> Edit:
        def edit(place: Place) -> None:
            from safetensors.numpy import load_file, save_file

            path = place.folder / "run" / "model.safetensors"
            save_file(change(load_file(path)), path)

        return edit

    def first(value: Any) -> Any:
        """Change the largest tensor."""

        def change(found: Any) -> Any:
            name = max(found, key=lambda each: found[each].size)
            return found | {name: value(found[name])}

        return change

    ways = {
        "NaN": first(lambda a: np.full_like(a, NAN)),
        "infinite": first(lambda a: np.full_like(a, INF)),
        "another shape": first(lambda a: a.reshape(-1)),
        "no elements": first(lambda a: a.reshape(-1)[:0]),
        "a tensor less": lambda found: dict(sorted(found.items(), key=lambda each: each[1].size)[:-1]),
        "float64": first(lambda a: a.astype("float64")),
        "integers": first(lambda a: a.astype("int8")),
        "another name": lambda found: {f"x.{k}": v for k, v in found.items()},
        "none": lambda found: {},
        "a tensor more": lambda found: found | {"more": np.zeros(3)},
    }
    headers = {
        "a header beyond the file": struct.pack("<Q", 2**40) + b"{}",
        "a huge header": struct.pack("<Q", 2**63) + b"{}",
        "a tensor of 4 EB": safetensors_header({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}),
        "offsets beyond the file": safetensors_header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        "a pickle": b"cos\nsystem\n(S'touch PAYLOAD'\ntR.",
        "empty": b"",
        "text": b"weights",
    }
    for number, command in enumerate((f.EVALUATE, f.PREDICT, f.FINE_TUNE)):
        for name, change in list(ways.items())[number::2]:
            expected = SAME if name in ("float64", "a tensor more") else REFUSED
            yield Case("weights", f"{name}, {command.arguments[0]}", command, tensors(change), expected=expected)
        for name, content in headers.items():
            edit = f.replaced("run/model.safetensors", content)
            yield Case("weights", f"{name}, {command.arguments[0]}", command, edit, expected=REFUSED)
    for name, content in headers.items():
        option = ("--architecture", "transfer", "--encoder", "resnet18", "--weights", "w.safetensors")
        yield Case("weights", f"{name} as --weights", f.TRAIN, f.replaced("w.safetensors", content), option, REFUSED)


def safetensors_header(content: Any) -> bytes:
    """Return a safetensors file that consists of a header."""
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


def state_cases() -> Iterator[Case]:
    """Edit state.ckpt, from which a training is resumed."""

    def content(change: Any) -> Edit:
        def edit(place: Place) -> None:
            import torch

            path = place.folder / "partial" / "state.ckpt"
            saved = torch.load(path, weights_only=False)
            change(saved)
            torch.save(saved, path)

        return edit

    def entry(*path: str, value: Any) -> Any:
        def change(saved: Any) -> None:
            for key in path[:-1]:
                saved = saved[key]
            saved[path[-1]] = value

        return change

    ways = [
        (f"progress {name} = {str(value)[:30]}", entry("progress", name, value=value))
        for name in ("epoch", "step", "seconds", "history", "confusion", "loss")
        for value in (-1, None, "text", NAN, 10**30, [])
    ]
    ways += [
        (f"progress without {name}", lambda saved, name=name: saved["progress"].pop(name)) for name in ("epoch", "loss")
    ]
    keys = ("identity", "progress", "parts", "random", "rng", "torch_rng")
    ways += [(f"without {name}", lambda saved, name=name: saved.pop(name, None)) for name in keys]
    ways += [
        (f"{name} = {value}", lambda saved, n=name, v=value: saved.__setitem__(n, v) if n in saved else None)
        for name in keys
        for value in (None, [], {})
    ]
    for name, change in ways:
        yield Case("state", name, f.RESUME, content(change), expected=SAME)
    pickle = b"cos\nsystem\n(S'touch PAYLOAD'\ntR."
    for name, data in {"a pickle": pickle, "empty": b"", "a zip file": b"PK\3\4" + bytes(99)}.items():
        yield Case("state", name, f.RESUME, f.replaced("partial/state.ckpt", data), expected=REFUSED)
    for name in ("card.json", "history.csv", "last.safetensors", "model.safetensors", "tiles.json", "recipe.toml"):
        yield Case("state", f"without {name}", f.RESUME, g.removed(f"partial/{name}"), expected=SAME)


def ledger_cases(inputs: Path) -> Iterator[Case]:
    """Edit what an interrupted map left behind, before the same command resumes it."""
    (left,) = (inputs / "ledger").iterdir()

    def placed(change: Any) -> Edit:
        def edit(place: Place) -> None:
            folder = place.folder / left.name
            shutil.move(place.folder / "ledger" / left.name, folder)
            for path in folder.glob("*.json"):
                path.write_text(path.read_text().replace(str(inputs), str(place.folder)))
            change(folder, place)

        return edit

    def lines(name: str, change: Any) -> Any:
        def edit(folder: Path, place: Place) -> None:
            (folder / name).write_text("\n".join(change((folder / name).read_text().splitlines())) + "\n")

        return edit

    yield Case("ledger", "unchanged", f.CONTINUE, placed(lambda folder, place: None), expected=ACCEPTED)
    for file in sorted(left.iterdir()):
        name = file.name
        for way in WAYS:
            edit = placed(lambda folder, place, n=name, w=way: f.damaged(f"{folder.name}/{n}", w)(place))
            yield Case("ledger", f"{name}: {way}", f.CONTINUE, edit, expected=ANY)
        yield Case(
            "ledger",
            f"without {name}",
            f.CONTINUE,
            placed(lambda folder, place, n=name: (folder / n).unlink()),
            expected=SAME,
        )
        if file.suffix not in (".tsv", ".csv", ".json"):
            continue
        changes = {
            "the last line twice": lambda rows: [*rows, rows[-1]],
            "half a line": lambda rows: [*rows[:-1], rows[-1][: len(rows[-1]) // 2]],
            "a negative number": lambda rows: [*rows[:-1], "-" + rows[-1]],
            "text": lambda rows: [*rows, "nonsense\tnonsense"],
            "empty": lambda rows: [],
            "lines in reverse": lambda rows: rows[::-1],
        }
        for label, change in changes.items():
            yield Case("ledger", f"{name}: {label}", f.CONTINUE, placed(lines(name, change)), expected=SAME)
