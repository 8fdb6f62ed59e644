"""A one-line description of the machine and the library versions."""

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

INSTRUCTIONS = ("amx_tile", "avx512_bf16", "avx512_vnni", "avx512f", "avx2", "asimd")
"""Instruction sets that matter for convolutions, the fastest first."""


def describe(packages: Iterable[str]) -> str:
    """Return one line: cores, instruction sets, versions of Python and of the installed packages, date."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = [
        f"Python {platform.python_version()}",
        *(f"{name} {installed}" for name in packages if (installed := _installed_version(name))),
    ]
    return f"{cores} cores, {platform.machine()}{_instructions()}; {', '.join(names)}; {datetime.now(UTC):%Y-%m-%d}."


def _installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _instructions() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    flags = {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    best = [name for name in INSTRUCTIONS if name in flags]
    return f" ({', '.join(best)})" if best else ""
