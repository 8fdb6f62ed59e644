"""The cases of scripts/fuzz_inputs.py, by family: what is wrong with a file or an option, and what must come of it."""

from collections.abc import Iterator
from pathlib import Path

import fuzz_files as f
import fuzz_geodata as g
import fuzz_jobs as j
import fuzz_own_files as o
import fuzz_scenes as s
from fuzz_files import ACCEPTED, ANY, REFUSED, Case


def all_cases(inputs: Path) -> list[Case]:
    """Return all cases, for the valid inputs in a folder."""
    families = (
        valid_cases(),
        o.card_cases(inputs),
        o.tileset_cases(inputs),
        o.index_cases(),
        o.history_cases(),
        o.weights_cases(),
        o.state_cases(),
        o.ledger_cases(inputs),
        g.raster_cases(),
        g.vector_cases(),
        g.table_cases(),
        g.mask_cases(),
        g.map_cases(),
        output_cases(),
        option_cases(),
        recipe_cases(),
        project_cases(),
        s.scene_cases(inputs),
        j.job_cases(inputs),
        damage_cases(),
    )
    return [case for family in families for case in family]


def valid_cases() -> Iterator[Case]:
    """Run each command on its valid input. Otherwise everything might be refused for another reason."""
    for name, command in vars(f).items():
        if isinstance(command, f.Command) and command is not f.CONTINUE:
            yield Case("valid", name.lower(), command, expected=ACCEPTED)


# ------------------------------------------------------------------------------------------------- options and outputs


def option_cases() -> Iterator[Case]:
    """Give every option of every command hostile values."""
    from geograft.config import (
        EvaluateConfig,
        ModelConfig,
        PolygonConfig,
        PredictConfig,
        PrepareConfig,
        ReviewConfig,
        SampleConfig,
        SuggestConfig,
        TrainConfig,
    )

    tables = (
        (PrepareConfig, f.PREPARE),
        (ModelConfig, f.TRAIN),
        (TrainConfig, f.TRAIN),
        (EvaluateConfig, f.EVALUATE),
        (PredictConfig, f.PREDICT),
        (PolygonConfig, f.POLYGONS),
        (SampleConfig, f.SAMPLE),
        (SuggestConfig, f.SUGGEST),
        (ReviewConfig, f.REVIEW),
    )
    values = ("-1", "0", "nan", "inf", "1e300", "1000000000", "9" * 23, "text", "", "0.5")
    # A valid setting that would take hours, or that starts other programs.
    lasting = {("epochs", "1000000000"), ("smooth", "1000000000"), ("mlflow", "text")}
    for config, command in tables:
        for number, (name, info) in enumerate(config.__pydantic_fields__.items()):
            option = f"--{name.replace('_', '-')}"
            if name == "compile":
                # It runs a C++ compiler, for minutes on a busy machine.
                continue
            if info.annotation is bool:
                yield Case("options", f"{command.arguments[0]} {option}", command, options=(option,))
                continue
            for value in values[number % 3 :: 3 if command is f.TRAIN else 2]:
                if (name, value) not in lasting:
                    yield Case(
                        "options", f"{command.arguments[0]} {option} {value!r}", command, options=(option, value)
                    )
    paths = {
        f.PREPARE: ("--aoi", "--groups", "--recipe", "--class-field"),
        f.TRAIN: ("--recipe", "--start"),
        f.EVALUATE: ("--against", "--tiles", "--out"),
        f.PREDICT: ("--aoi", "--ensemble"),
        f.POLYGONS: ("--dstl-grid",),
        f.AREA: ("--out",),
        f.JACCARD: ("--labels", "--out"),
        f.SUGGEST: ("--known", "--aoi"),
        f.REVIEW: ("--tiles",),
        f.REPORT: ("--out",),
        f.AUDIT: ("--figure",),
        f.MODEL: ("--bands", "--outputs", "--size", "--draw-to"),
    }
    for command, options in paths.items():
        for option in options:
            for value in ("", "missing", ".", "/dev/null", "\udce9", "n" * 300, "-1"):
                shown = value.encode("ascii", "backslashreplace").decode()[:9]
                yield Case("options", f"{command.arguments[0]} {option} {shown!r}", command, options=(option, value))
    for arguments in (
        ("model", "x"),
        ("model", "resnet18", "--size", "1000000000"),
        ("model", "unet", "--bands", "1000000000"),
        ("model", "unet", "--outputs", "-1"),
    ):
        yield Case("options", " ".join(arguments), f.Command(arguments), expected=REFUSED)
    several = {
        f.command("curve tiles --out c --epochs 1 --min-steps 0", "tiles", options=f.TRAINING): (
            "--percent nan", "--percent -1,200", "--percent inf", "--min-steps -1", "--seeds -1", f"--seeds {'9' * 23}",
        ),
        f.command("find tiles --out c --epochs 1 --trials 1", "tiles", options=f.TRAINING): (
            "--trials -1", "--trials 0", "--minutes nan", "--minutes -1", "--encoders x", "--encoders ,,",
        ),
        f.COMPARE: ("--folds -1", "--folds 1", "--folds 1000000000", "--seeds -1", f"--seeds {'9' * 23}"),
    }  # fmt: skip
    for command, values in several.items():
        for option in values:
            yield Case("options", f"{command.arguments[0]} {option}", command, options=tuple(option.split()))


def output_cases() -> Iterator[Case]:
    """Let something be in the way of the output: nothing that is there may be lost."""
    outputs = {
        f.PREPARE: "q",
        f.PREDICT: "m.tif",
        f.POLYGONS: "p.geojson",
        f.TRAIN: "new",
        f.SAMPLE: "s.gpkg",
        f.SUGGEST: "s.gpkg",
        f.REVIEW: "r",
    }
    for command, out in outputs.items():
        stem = out.partition(".")[0]
        part = f".{out if command is not f.PREDICT else stem}.part"
        edits = {
            "a folder of others": f.replaced(f"{out}/thesis.txt", "thesis"),
            "a dangling link": g.link(out, "missing"),
            "a FIFO": g.fifo(out),
            "a link to itself": g.link(out, out),
            f"{part} of others": f.replaced(f"{part}/thesis.txt", "thesis"),
            f"a file {part}": f.replaced(part, "thesis"),
            f"a link {part}": g.link(part, "missing"),
            "a file of the lock's name": f.replaced(f".{out}.geograft-lock", "thesis"),
            "a link as lock": g.link(f".{out}.geograft-lock", "scene.tif"),
        }
        for name, edit in edits.items():
            expected = REFUSED if "others" in name or name in ("a dangling link", "a FIFO") else ANY
            if command is f.TRAIN and name.startswith(part):
                # A training has its temporary files in the folder of the run.
                expected = ACCEPTED
            yield Case("outputs", f"{command.arguments[0]}: {name}", command, edit, expected=expected)
        for name in (
            "",
            ".",
            "/",
            "/dev/null",
            "/dev/full",
            "n" * 300,
            "a\udce9/b",
            "missing/deep/" + out,
            "/proc/x/" + out,
            "/proc/" + out,
            "/sys/" + out,
        ):
            shown = name.encode("ascii", "backslashreplace").decode()[:20]
            yield Case("outputs", f"{command.arguments[0]} --out {shown!r}", command, options=("--out", name))


def recipe_cases() -> Iterator[Case]:
    """Write wrong recipes."""
    texts = {
        "empty": "",
        "no TOML": "[train",
        "zero bytes": "\0",
        "an unknown table": "[nonsense]\na = 1\n",
        "an unknown key": "[train]\nepoch = 1\n",
        "a list": "train = [1]\n",
        "a table as value": "[train.epochs]\na = 1\n",
        "epochs as text": '[train]\nepochs = "x"\n',
        "epochs nan": "[train]\nepochs = nan\n",
        "warm-up inf": "[train]\nwarmup_epochs = inf\n",
        "workers 100000": "[train]\nworkers = 100000\n",
        "seed -1": "[train]\nseed = -1\n",
        "a seed of 23 digits": f"[train]\nseed = {'9' * 23}\n",
        "no variants": "variants = []\n",
        "a variant without name": "[[variants]]\n",
        "a variant twice": '[[variants]]\nname = "a"\n[[variants]]\nname = "A"\n',
        "a name of dots": '[[variants]]\nname = "../../x"\n',
        "a name of spaces": '[[variants]]\nname = "  "\n',
        "a name of 300 letters": f'[[variants]]\nname = "{"n" * 300}"\n',
        "seeds as text": 'seeds = "ab"\n',
        "no seeds": "seeds = []\n",
        "a title as number": "title = 1\n",
        "a deep table": "[" + ".".join("a" * 500) + "]\n",
        "rate nan": "[train]\ndecoder_lr = nan\n",
        "rate 1e300": "[train]\ndecoder_lr = 1e300\n",
        "batch size 10^9": "[train]\nbatch_size = 1000000000\n",
        "repeat 10^9": "[train]\nrepeat = 1000000000\n",
    }
    for name, text in texts.items():
        for command in (f.RECIPE, f.COMPARE):
            edit, quick = f.replaced("recipe.toml", text), ("--architecture", "unet", "--epochs", "1")
            # A variant's run is in a folder of its name.
            wrong = command is f.COMPARE and name in ("a name of spaces", "a name of 300 letters")
            expected = REFUSED if wrong else ANY
            yield Case("recipe", f"{name}, {command.arguments[0]}", command, edit, quick, expected)


GO = f.Command(("go", "p"), ("p", "scene.tif"))
"""Trains if it is not refused, so it has no valid case."""


def project_cases() -> Iterator[Case]:
    """Write wrong settings of a project, and edit its areas and labels."""
    valid = 'title = "p"\nimages = ["../scene.tif"]\nclasses = [{ name = "field", colour = "#009E73" }]\n'
    texts = {
        "empty": "",
        "no TOML": valid + "[train",
        "zero bytes": "\0" * 50,
        "no classes": valid.partition("classes")[0] + "classes = []\n",
        "a class twice": valid.replace("}]", '}, { name = "field", colour = "#000000" }]'),
        "another class": valid.replace("field", "forest"),
        "a colour in words": valid.replace("#009E73", "green"),
        "no image": valid.replace("../scene.tif", "missing.tif"),
        "an image on a server": valid.replace("../scene.tif", "{server}/a.tif"),
        "an image twice": valid.replace('["../scene.tif"]', '["../scene.tif", "../scene.tif"]'),
        "a folder as image": valid.replace("../scene.tif", ".."),
        "images as text": valid.replace('["../scene.tif"]', '"../scene.tif"'),
        "an unknown table": valid + "[nonsense]\na = 1\n",
        "an unknown key": valid + "[train]\nepoch = 1\n",
        "a tile size of 10^9": valid + "[prepare]\ntile_px = 1000000000\n",
        "a threshold nan": valid + "[predict]\nthreshold = [nan]\n",
        "areas of 0 pixels": valid + "[areas]\narea_px = 0\n",
        "a title as number": valid.replace('"p"', "1"),
        "a deep table": valid + "[" + ".".join("a" * 500) + "]\n",
    }
    for name, text in texts.items():
        yield Case("project", f"project.toml: {name}", GO, f.replaced("p/project.toml", text), expected=REFUSED)
    for name in ("project.toml", "labels.gpkg"):
        yield Case("project", f"without {name}", GO, g.removed(f"p/{name}"), expected=REFUSED)
    statements = {
        "an unknown role": ("UPDATE areas SET role = 'x'", REFUSED),
        "no role": ("UPDATE areas SET role = NULL", REFUSED),
        "an unknown origin": ("UPDATE areas SET origin = 'x'", REFUSED),
        "drawn scoring areas": ("UPDATE areas SET origin = 'drawn'", REFUSED),
        "suggested polygons": ("UPDATE labels SET origin = 'suggested'", REFUSED),
        "polygons of no class": ("UPDATE labels SET class = NULL", REFUSED),
        "a class of 3000 letters": (f"UPDATE labels SET class = '{'n' * 3000}'", REFUSED),
        "labelled as text": ("UPDATE areas SET labelled = 'yes'", ANY),
        "a rank of 1e300": ("UPDATE areas SET rank = 1e300", ANY),
        "a rank below 0": ("UPDATE areas SET rank = -5", ANY),
        "nothing labelled": ("UPDATE areas SET labelled = 0", REFUSED),
        "areas without geometry": ("UPDATE areas SET geom = NULL", REFUSED),
        "no areas": ("DELETE FROM areas", REFUSED),
        "no polygons": ("DELETE FROM labels", REFUSED),
        "no layer labels": ("DROP TABLE labels", REFUSED),
        "no field class": ("ALTER TABLE labels DROP COLUMN class", REFUSED),
        "no field labelled": ("ALTER TABLE areas DROP COLUMN labelled", REFUSED),
    }
    for name, (statement, expected) in statements.items():
        yield Case(
            "project", f"labels.gpkg: {name}", f.AREAS, f.edited_table("p/labels.gpkg", statement), expected=expected
        )


def damage_cases() -> Iterator[Case]:
    """Damage bytes of every kind of file at random."""
    files = {
        "run/card.json": f.EVALUATE,
        "run/model.safetensors": f.EVALUATE,
        "partial/state.ckpt": f.RESUME,
        "run/history.csv": f.REPORT,
        "run/scores-test.json": f.REPORT,
        "partial/recipe.toml": f.RESUME,
        "run/tiles.json": f.REPORT,
        "run/training_features.safetensors": f.APPLICABILITY,
        "tiles/tileset.json": f.AUDIT,
        "tiles/tiles.gpkg": f.EVALUATE,
        "tiles/masks/*.tif": f.EVALUATE,
        "scene.tif": f.PREDICT,
        "labels.gpkg": f.PREPARE,
        "l.geojson": f.GEOJSON,
        "images/0.png": f.MASKS,
        "masks/0.png": f.MASKS,
        "dstl/train_wkt_v4.csv": f.DSTL,
        "dstl/grid_sizes.csv": f.DSTL,
        f"dstl/three_band/{f.SCENE}.tif": f.DSTL,
        "map.tif": f.POLYGONS,
        "points.gpkg": f.AREA,
        "recipe.toml": f.RECIPE,
        "p/labels.gpkg": f.AREAS,
        "run.graft": f.BUNDLE,
    }
    for name, command in files.items():
        for number, way in enumerate(o.WAYS):
            yield Case("damage", f"{name}: {way} {number}", command, f.damaged(name, way))
    for name, command in (("l.geojson", f.IMPORT), ("map.tif", f.IMPORT_MASK), ("p/labels.gpkg", f.IMPORT)):
        for number, way in enumerate(o.WAYS):
            yield Case("import", f"{name}: {way} {number}", command, f.damaged(name, way))
