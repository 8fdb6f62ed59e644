"""Importing Geograft changes no state of the host process: environment, logging, warnings, or options of libraries."""

import json
import subprocess
import sys

THIRD_PARTY = """
import json, pkgutil, sys
from importlib import import_module
import geograft

modules = [module.name for module in pkgutil.walk_packages(geograft.__path__, "geograft.")]
modules.remove("geograft.__main__")  # runs the command line
modules = [name for name in modules if not name.startswith("geograft.qgis_plugin.")]  # QGIS imports them
for name in modules:
    import_module(name)
assert len(modules) > 80
others = [name for name, module in sys.modules.items() if module and not name.startswith(("geograft", "__"))]
print(json.dumps([others, modules]))
"""
COMPARE = """
import contextlib, csv, json, logging, os, random, signal, sys, warnings
from importlib import import_module

others, modules = json.loads(sys.stdin.read())
for name in others:
    with contextlib.suppress(ImportError):
        import_module(name)
import numpy, torch
from rasterio._env import get_gdal_config

GDAL = ("GDAL_CACHEMAX", "GDAL_ERROR_ON_LIBJPEG_WARNING", "GDAL_PNG_WHOLE_IMAGE_OPTIM", "GDAL_NUM_THREADS")


def loggers():
    found = {"": logging.root, **logging.root.manager.loggerDict}
    states = {
        name: (each.level, list(map(str, each.handlers)), each.propagate, each.disabled)
        for name, each in found.items()
        if isinstance(each, logging.Logger) and not name.startswith("geograft")
    }
    return {name: state for name, state in states.items() if state != (0, [], True, False)}


def state():
    cudnn = torch.backends.cudnn
    return {
        "environment": dict(os.environ),
        "loggers": loggers(),
        "logging disabled": logging.root.manager.disable,
        "warning filters": [str(each) for each in warnings.filters],
        "GDAL": {name: get_gdal_config(name) for name in GDAL},
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch dtype": (str(torch.get_default_dtype()), torch.get_float32_matmul_precision()),
        "torch determinism": (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark),
        "torch grad": torch.is_grad_enabled(),
        "torch sharing": torch.multiprocessing.get_sharing_strategy(),
        "random numbers": (torch.initial_seed(), hash(random.getstate()), hash(numpy.random.get_state()[1].tobytes())),
        "numpy errors": numpy.geterr(),
        "csv": csv.field_size_limit(),
        "process": (str(sys.excepthook), sys.getrecursionlimit(), str(signal.getsignal(signal.SIGINT)), os.getcwd()),
    }


before = state()
assert not any(name.startswith("geograft") for name in sys.modules)
for name in modules:
    import_module(name)
after = state()
print(json.dumps({name: [before[name], after[name]] for name in before if before[name] != after[name]}))
"""


def run_python(code: str, stdin: str = "") -> str:
    done = subprocess.run([sys.executable, "-c", code], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_changes_no_global_state() -> None:
    """Other libraries may change some when they are imported, so they are imported first."""
    assert json.loads(run_python(COMPARE, run_python(THIRD_PARTY))) == {}
