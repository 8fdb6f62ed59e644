"""The number of processor cores that this process may use."""

import os


def usable_cores() -> int:
    """Return the number of cores: containers and batch systems often allow fewer than the machine has."""
    # Windows and macOS have no sched_getaffinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
