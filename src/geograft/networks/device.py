"""Where and in which number format networks run."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch

from geograft.errors import SettingError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def find_device(name: str) -> str:
    """Return "cpu", "cuda" or "mps": `name` itself, or the fastest of this machine's for "auto".

    Raises:
        SettingError: for another name, or a device that this machine does not have.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in found.items() if there)
    if name not in found:
        raise SettingError(f"device = {name!r} is not a device. Use auto, cpu, cuda or mps.")
    if not found[name]:
        there = " or ".join(device for device in found if found[device])
        raise SettingError(f"device = {name!r}: PyTorch sees no such device on this machine. Use auto or {there}.")
    return name


def find_precision(name: Literal[Precision, "auto"], device: str) -> Precision:
    """Return the number format: `name` itself; for "auto", bf16-mixed where hardware multiplies in it, else 32-true.

    That is NVIDIA's GPUs from Ampere on, which do not emulate it, and CPUs with AMX. Other CPUs stay at 32-true, those
    with AVX-512's bfloat16 instructions too, so that a run without a GPU gives the same on most machines.

    Raises:
        SettingError: for 16-mixed without a GPU, whose gradients it needs scaling for.
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


def layout(device: torch.device) -> torch.memory_format:
    """Return the order in memory in which networks and images are fastest on a device.

    Channels last: on CPUs a step takes a fifth less and a prediction half. Apple's GPUs keep torch's own order.
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a network predicts: on an NVIDIA GPU in bfloat16 where it has it, else in float16.

    Elsewhere in float32. Bfloat16 keeps float32's range and 8 bits; float16 keeps 11 bits up to 65,504.
    """
    if device.type != "cuda":
        return nullcontext()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast("cuda", dtype=torch.bfloat16 if bf16 else torch.float16)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Have CUDA compute the same bits from the same input while the block runs. CPUs do so anyway."""
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    fills = deterministic.fill_uninitialized_memory
    # cuBLAS reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling costs a pass over every map, and nothing here reads such memory.
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def in_short(error: Exception) -> str:
    """Return the first line of an error's message, cut to a length that fits into another message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120].rstrip(".")
