"""Weights of any lineage fitted to a timm network: by name, or pair by pair in order, and never by luck."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from geograft.errors import WeightsError
from geograft.learn.networks.encoder import stage_modules

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
