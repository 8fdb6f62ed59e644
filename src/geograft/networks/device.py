"""Device, precision and memory format of networks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Shaped
from numpy import ndarray
from torch import Tensor

from geograft.errors import SettingError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def find_device(name: str) -> str:
    """Return "cpu", "cuda" or "mps": `name` itself, or for "auto" the fastest device of this machine.

    Raises:
        SettingError: for an unknown name, or a device that this machine does not have.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, available in found.items() if available)
    if name not in found:
        raise SettingError(f"device = {name!r} is not a device. Use auto, cpu, cuda or mps.")
    if not found[name]:
        available = " or ".join(device for device in found if found[device])
        raise SettingError(f"device = {name!r}: PyTorch finds no such device on this machine. Use auto or {available}.")
    return name


def find_precision(name: Literal[Precision, "auto"], device: str) -> Precision:
    """Return the training precision: `name` itself; for "auto", bf16-mixed with hardware support, else 32-true.

    NVIDIA GPUs from Ampere on and CPUs with AMX have it. Other CPUs use 32-true, also those with AVX-512's bfloat16
    instructions, so that CPU runs agree on most machines.

    Raises:
        SettingError: for 16-mixed on a CPU, where gradient scaling is not supported.
    """
    if name == "auto":
        return "bf16-mixed" if _multiplies_bf16(device) else "32-true"
    if name == "16-mixed" and device == "cpu":
        raise SettingError("precision = '16-mixed' needs a GPU. Use auto, 32-true or bf16-mixed.")
    return name


def _multiplies_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and bool(torch.cpu._is_amx_tile_supported())


def memory_format_for(device: torch.device) -> torch.memory_format:
    """Return the fastest memory format for networks and images on a device.

    Channels last saves a fifth of a training step and half of a prediction on CPUs. Apple's GPUs use torch's default.
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def half_precision(device: torch.device) -> torch.dtype | None:
    """Return the half precision for prediction: bfloat16 on NVIDIA GPUs that support it, else float16 there.

    None on other devices, which use float32. Bfloat16 has float32's range and 8 bits of precision; float16 has 11 bits
    up to 65,504.
    """
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


SMALL_DTYPES = ("uint8", "int8", "int16", "uint16", "float16")
"""dtypes of pixels that are copied to a device as they are stored; others become float32."""


def transfer_form(pixels: Shaped[ndarray, "*shape"]) -> tuple[Shaped[ndarray, "*shape"], bool]:
    """Return pixels in a dtype that torch can compute with, and whether they are uint16, whose bits are then int16."""
    if pixels.dtype == np.uint16:
        return pixels.view(np.int16), True
    return pixels if pixels.dtype.name in SMALL_DTYPES else pixels.astype(np.float32, copy=False), False


def stored_values(pixels: Shaped[Tensor, "*shape"], uint16: bool) -> Shaped[Tensor, "*shape"]:
    """Return the values of pixels in the form of `transfer_form`."""
    return pixels.to(torch.int32) & 0xFFFF if uint16 else pixels


@contextmanager
def deterministic_algorithms(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms on CUDA inside the block. CPU results are deterministic anyway."""
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    fill_memory = deterministic.fill_uninitialized_memory
    # cuBLAS reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling costs a pass over every feature map, and nothing here reads uninitialised memory.
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = fill_memory
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
