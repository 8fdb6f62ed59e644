"""ONNX Runtime and OpenVINO: agreement with torch, cached graphs, and torch as fallback."""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray
from torch.nn.functional import interpolate

from geograft.card import WEIGHTS, ModelCard, read_card
from geograft.config import ModelConfig
from geograft.errors import SettingError
from geograft.inference import backends as choice
from geograft.inference import graphs, torch_networks
from geograft.inference.predictor import EnsemblePredictor
from geograft.legend import Legend
from geograft.networks.network import Network, build
from geograft.training.checkpoint import save_weights
from tests.support.exports import BINARY, tiny

OTHERS = ("onnx", "openvino")
CARD = replace(BINARY, name="squares", resolution_m=None, threshold=0.5, temperature=1.0)
# Geograft's own network, the article's, its kin, and the U-Net where it pads its images, with three classes.
LIGHT = replace(CARD, model=ModelConfig(weights="none"), tile_px=128)
TRANSFER = replace(CARD, model=ModelConfig(architecture="transfer", weights="none"), tile_px=64)
LITE0 = replace(TRANSFER, model=replace(TRANSFER.model, encoder="efficientnet_lite0"))
PADDED = replace(CARD, legend=Legend(("rest", "crown", "road")), tile_px=40)


def tiles(card: ModelCard, count: int = 3) -> tuple[ndarray, ndarray]:
    """Return noise like the training's images, with a corner that is not valid."""
    shape = (count, card.tile_px, card.tile_px, 3)
    noise = np.random.default_rng(0).normal(card.mean, card.std, shape).clip(0, 255).astype(np.uint8)
    valid = np.ones(shape[:3], bool)
    valid[:, :9, :9] = False
    return noise.transpose(0, 3, 1, 2), valid


def make_run(folder: Path, card: ModelCard = CARD, *, seed: int = 0, network: Callable[..., Network] = build) -> Path:
    """Write a run whose network is sure of itself, as a trained one is, so that differences show."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    card.write(folder)
    trained = network(card.model, 3, card.legend.outputs, pretrained=False).train()
    for module in trained.modules():
        module.momentum = 1.0
    with torch.no_grad():
        # Batch norm takes the statistics of its maps: of fine noise and of patches, for in an image unlike any of
        # those a deep network makes much of each last bit.
        fine = torch.randn(16, 3, card.tile_px, card.tile_px)
        patches = interpolate(torch.randn(16, 3, card.tile_px // 8, card.tile_px // 8), scale_factor=8.0)
        trained(torch.cat([fine, (fine + patches) / 2**0.5]))
        trained.body.head.weight *= 3 + seed
    save_weights(folder / WEIGHTS, trained)
    return folder


def load(run: Path, backend: str, batch_size: int = 3, **options: Any) -> EnsemblePredictor:
    return EnsemblePredictor.load([run], device="cpu", backend=backend, batch_size=batch_size, **options)


def never(*_given: Any) -> None:
    raise AssertionError("exported again")


def exporter(monkeypatch: pytest.MonkeyPatch, backend: str, export: Callable[..., None]) -> None:
    """Let a backend export with `export`."""
    monkeypatch.setitem(choice.EXPORT_BACKENDS, backend, replace(choice.EXPORT_BACKENDS[backend], export=export))


@pytest.fixture(scope="module", params=[LIGHT, TRANSFER, LITE0, PADDED], ids=["light", "transfer", "lite0", "padded"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network that Geograft trains."""
    return make_run(tmp_path_factory.mktemp("real") / "run", request.param)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of a tiny network, in the real ones' place from here on, with the graphs of both backends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geograft.inference.torch_networks.build", tiny)
        run = make_run(tmp_path_factory.mktemp("kept") / "run", network=tiny)
        for backend in OTHERS:
            assert load(run, backend).backend == backend
        yield run


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(kept, tmp_path / "run"))


@pytest.mark.parametrize("backend", OTHERS)
def test_both_give_torchs_probabilities(backend: str, real: Path) -> None:
    expected = load(real, "torch")(*tiles(read_card(real)))
    assert expected[:, 0].std() > 0.05
    mapper = load(real, backend)
    assert (mapper.backend, mapper.notes) == (backend, ())
    found = mapper(*tiles(read_card(real)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("backend", ["torch", *OTHERS])
def test_a_tile_gives_the_same_bits_wherever_it_is_and_on_any_number_of_cores(backend: str, real: Path) -> None:
    pixels, valid = tiles(read_card(real), 5)
    mapper = load(real, backend, 5)
    upright = mapper(pixels, valid)
    for place in (1, 4):
        assert np.array_equal(mapper(np.roll(pixels, place, axis=0), valid)[place], upright[0])
    cores = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        alone = load(real, backend, 1)(pixels[:1], valid[:1])
        together = load(real, backend, 5)(pixels, valid)
    finally:
        torch.set_num_threads(cores)
    assert np.array_equal(alone[0], upright[0])
    assert np.array_equal(together, upright)


@pytest.mark.parametrize("backend", OTHERS)
def test_cached_graphs_are_used_and_give_the_same_bits(
    backend: str, kept: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "exported")
    anew = load(run, backend)(*tiles(CARD))
    said = capfd.readouterr()
    assert not said.out + said.err
    exporter(monkeypatch, backend, never)
    mapper = load(kept, backend)
    assert (mapper.backend, mapper.notes) == (backend, ())
    assert np.array_equal(mapper(*tiles(CARD)), anew)


@pytest.mark.parametrize("backend", OTHERS)
def test_other_weights_and_other_tiles_have_graphs_of_their_own(
    backend: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter(monkeypatch, backend, never)
    for changes in ({"seed": 1}, {"card": replace(CARD, tile_px=48)}):
        make_run(run, network=tiny)
        assert load(run, backend).backend == backend
        make_run(run, network=tiny, **changes)
        assert "exported again" in load(run, backend).notes[0]


def copying(monkeypatch: pytest.MonkeyPatch, backend: str, kept: Path) -> None:
    """Let a backend export by copying the graph of that run, which takes no time."""
    (graph,) = kept.glob(f"exported/{backend}-*")

    def export(_network: Any, _image: Any, folder: Path) -> None:
        for file in graph.glob("graph.*"):
            shutil.copy(file, folder)

    exporter(monkeypatch, backend, export)


@pytest.mark.parametrize("backend", OTHERS)
def test_damaged_graphs_are_replaced(backend: str, kept: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copying(monkeypatch, backend, kept)
    expected = load(kept, backend)(*tiles(CARD))
    (folder,) = run.glob(f"exported/{backend}-*")
    for damage in (
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: file.write_text("{}"),
        lambda file: file.unlink(),
    ):
        for name in sorted(file.name for file in folder.iterdir()):
            damage(folder / name)
            mapper = load(run, backend)
            assert (mapper.backend, mapper.notes) == (backend, ())
            assert np.array_equal(mapper(*tiles(CARD)), expected)
            assert graphs.is_intact(folder)
    assert {file.name for file in (run / "exported").iterdir()} == {file.name for file in folder.parent.iterdir()}


@pytest.mark.parametrize("backend", OTHERS)
def test_a_run_folder_that_cannot_be_written_will_do(
    backend: str, kept: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying(monkeypatch, backend, kept)
    expected = load(run, backend)(*tiles(CARD))
    shutil.rmtree(run / "exported")
    (run / "exported").write_text("in the way")
    mapper = load(run, backend)
    assert (mapper.backend, mapper.notes) == (backend, ())
    assert np.array_equal(mapper(*tiles(CARD)), expected)


def forget_trials(run: Path) -> None:
    """Let backends be compared again."""
    for file in run.glob("exported/trials-*.json"):
        file.unlink()


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends that are compared with torch from here on."""
    compare, seen = torch_networks.compare_backends, list[str]()

    def counted(trained: Any, backends: Any, workers: Any) -> Any:
        seen.extend(backends)
        return compare(trained, backends, workers)

    monkeypatch.setattr(torch_networks, "compare_backends", counted)
    return seen


def test_comparisons_are_remembered_until_weights_threads_or_files_change(run: Path, comparisons: list[str]) -> None:
    expected = load(run, "openvino")(*tiles(CARD))
    assert load(run, "openvino").difference > 0
    assert not comparisons
    (record, *_) = run.glob("exported/trials-*.json")
    (graph,) = run.glob("exported/openvino-*/graph.bin")
    for file in (record, graph):
        file.write_bytes(file.read_bytes()[:-9])
        assert np.array_equal(load(run, "openvino")(*tiles(CARD)), expected)
        assert comparisons == ["openvino"]
        comparisons.clear()
        assert load(run, "openvino").backend == "openvino"
        assert not comparisons
    cores = torch.get_num_threads()
    try:
        torch.set_num_threads(cores + 1)
        assert np.array_equal(load(run, "openvino", batch_size=64)(*tiles(CARD)), expected)
    finally:
        torch.set_num_threads(cores)
    assert comparisons == ["openvino"]
    make_run(run, seed=1, network=tiny)
    assert not np.array_equal(load(run, "openvino")(*tiles(CARD)), expected)
    assert comparisons == ["openvino"] * 2


def with_runner(monkeypatch: pytest.MonkeyPatch, backend: str, change: Callable[[Any], Any]) -> None:
    """Change what a backend computes."""
    known = choice.EXPORT_BACKENDS[backend]

    def runner(folder: Path, workers: int) -> Any:
        real = known.runner(folder, workers)
        return lambda images: change(real(images))

    monkeypatch.setitem(choice.EXPORT_BACKENDS, backend, replace(known, runner=runner))


@pytest.mark.parametrize(("off", "agrees"), [(0.0035, True), (0.02, False), (float("nan"), False)])
def test_torch_replaces_a_backend_that_disagrees(
    off: float, agrees: bool, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_trials(run)
    with_runner(monkeypatch, "onnx", lambda logits: logits + np.float32(off))
    mapper = load(run, "onnx")
    if agrees:
        assert (mapper.backend, mapper.notes) == ("onnx", ())
        assert 0 < mapper.difference <= 1e-3
        return
    assert mapper.difference == 0
    assert mapper.backend == "torch"
    assert len(mapper.notes) == 1
    assert mapper.notes[0].startswith("ONNX Runtime") and "0.001" in mapper.notes[0]
    assert np.array_equal(mapper(*tiles(CARD)), load(run, "torch")(*tiles(CARD)))


def test_torch_replaces_a_backend_that_disagrees_for_one_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_run(tmp_path / "other", seed=1, network=tiny)
    together = EnsemblePredictor.load([run, other], device="cpu", backend="onnx", batch_size=3)
    assert together.backend == "onnx"
    expected = EnsemblePredictor.load([run, other], device="cpu", backend="torch", batch_size=3)(*tiles(CARD))
    np.testing.assert_allclose(together(*tiles(CARD)), expected, atol=2e-5)
    calls = iter(range(100))
    forget_trials(run)
    forget_trials(other)
    with_runner(monkeypatch, "onnx", lambda logits: logits + np.float32(next(calls)))
    mapper = EnsemblePredictor.load([run, other], device="cpu", backend="onnx", batch_size=3)
    assert mapper.backend == "torch"
    assert np.array_equal(mapper(*tiles(CARD)), expected)


def test_torch_replaces_a_backend_that_cannot_export(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_given: Any) -> None:
        raise RuntimeError("no such operator: aten::swirl.\nand much more")

    shutil.rmtree(run / "exported")
    exporter(monkeypatch, "openvino", fails)
    mapper = load(run, "openvino")
    assert mapper.backend == "torch"
    (note,) = mapper.notes
    assert "OpenVINO" in note and "(no such operator: aten::swirl)" in note


@pytest.mark.parametrize("fastest", ["torch", *OTHERS])
def test_auto_selects_the_fastest_that_agrees(fastest: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_trials(run)
    names = iter(("torch", "openvino", "onnx"))
    monkeypatch.setattr(torch_networks, "_seconds", lambda *_given: 0.1 if next(names) == fastest else 0.2)
    mapper = load(run, "auto")
    assert (mapper.backend, mapper.notes) == (fastest, ())
    assert np.array_equal(mapper(*tiles(CARD)), load(run, fastest)(*tiles(CARD)))


def test_auto_skips_backends_that_disagree_or_are_not_installed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_trials(run)
    slow = torch_networks.TorchRunner
    monkeypatch.setattr(torch_networks, "_seconds", lambda runner, *_given: 0.1 + isinstance(runner, slow))
    with_runner(monkeypatch, "openvino", lambda logits: logits + 1)
    mapper = load(run, "auto")
    assert mapper.backend == "onnx"
    assert ["OpenVINO" in note for note in mapper.notes] == [True]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert load(run, "auto").backend == "torch"


@pytest.mark.parametrize(("backend", "module"), [("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("openvino",) * 2])
def test_missing_backends_are_rejected(backend: str, module: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingError, match=rf"pip install 'geograft\[{backend}\]'"):
        load(run, backend)


def test_the_others_run_on_the_cpu_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match=r"'onnx'.*cuda"):
        EnsemblePredictor.load([run], device="cuda", backend="onnx", batch_size=3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choice.backend_device("onnx", "auto") == "cpu"
    assert choice.backend_device("auto", "auto") == choice.backend_device("torch", "auto") == "cuda"


def test_backends_are_compared_on_the_batch_given(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is off where the first band is bright only."""
    bright = np.full((3, 3, 32, 32), 255, np.uint8)
    known = choice.EXPORT_BACKENDS["onnx"]

    def runner(folder: Path, workers: int) -> Any:
        real = known.runner(folder, workers)
        return lambda images: real(images) + (images[:, :1] > 4).astype(np.float32)

    forget_trials(run)
    monkeypatch.setitem(choice.EXPORT_BACKENDS, "onnx", replace(known, runner=runner))
    assert load(run, "onnx", sample=(bright, np.ones((3, 32, 32), bool))).backend == "torch"
    assert load(run, "onnx", sample=(bright, np.zeros((3, 32, 32), bool))).backend == "onnx"


def test_a_network_that_cannot_be_compiled_runs_uncompiled(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_given: Any, **_options: Any) -> Any:
        def fails(_images: Any) -> None:
            raise RuntimeError("no C++ compiler found.")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    mapper = load(run, "torch", compile=True)
    (note,) = mapper.notes
    assert "(no C++ compiler found)" in note
    assert np.array_equal(mapper(*tiles(CARD)), load(run, "torch")(*tiles(CARD)))


def test_a_compiled_network_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_options: lambda images: 0 * network(images))
    assert (load(run, "torch", compile=True)(*tiles(CARD)) == 0.5).all()


FIRST_CALLS = """
import os, sys, threading
from pathlib import Path
import numpy
from geograft.inference.graphs import OpenVINORunner
streams, start = OpenVINORunner(Path(sys.argv[1]), 2), threading.Barrier(2)
def first_call():
    start.wait()
    streams(numpy.zeros((1, 3, 32, 32), numpy.float32))
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=first_call, daemon=True) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join(60) for thread in threads]
os._exit(any(thread.is_alive() for thread in threads))
"""


def test_simultaneous_first_calls_do_not_deadlock(tmp_path: Path) -> None:
    """OpenVINO makes a table at its first use, and two threads that make it at once would wait for ever."""
    pytest.importorskip("openvino")

    graphs.export_openvino(torch.nn.Conv2d(3, 1, 1).eval(), torch.zeros(1, 3, 32, 32), tmp_path)
    done = subprocess.run([sys.executable, "-c", FIRST_CALLS, str(tmp_path)], timeout=180, check=False)
    assert done.returncode == 0


class SignalStack(ctypes.Structure):
    """The alternate stack of signal handlers, stack_t of <signal.h> on Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    @classmethod
    def current(cls) -> tuple[int | None, int]:
        stack = cls()
        assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
        return stack.address, stack.size


@pytest.mark.skipif(sys.platform != "linux", reason="stack_t of Linux")
def test_openvino_leaves_the_stack_of_signal_handlers_alone(kept: Path) -> None:
    """It sets another one in the thread that compiles, and unmaps it later: a handler that runs there crashes."""
    before = SignalStack.current()
    assert load(kept, "openvino").backend == "openvino"
    assert SignalStack.current() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_of_openvino_are_bound_to_no_core(kept: Path) -> None:
    """Threads of several processes would be bound to the same cores, and wait for each other."""
    mapper, pixels = load(kept, "openvino"), tiles(CARD)
    mine, seen, ended = frozenset(os.sched_getaffinity(0)), set(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for task in Path("/proc/self/task").iterdir():
                with suppress(OSError):  # it has ended
                    seen.add(frozenset(os.sched_getaffinity(int(task.name))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(20):
        mapper(*pixels)
    ended.set()
    watcher.join()
    assert seen == {mine}
