"""What this process may use: cores, network interfaces; and limits of memory, time and file size for uploads."""

import os
import socket
import sys
from pathlib import Path

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]


def usable_cores() -> int:
    """Return the number of cores: containers and batch systems often allow fewer than the machine has."""
    # Windows and macOS have no sched_getaffinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


ROUTES = Path("/proc/net/route")


def interface_to(host: str, routes: Path = ROUTES) -> str:
    """Return the network interface that leads to a host, by the most specific route of a table as Linux has it.

    Empty if there is none: on other systems, for loopback addresses, for names without an IPv4 address.
    """
    try:
        address, lines = socket.gethostbyname(host), routes.read_text(encoding="ascii").splitlines()[1:]
    except (OSError, UnicodeError):
        return ""
    number = int.from_bytes(socket.inet_aton(address), sys.byteorder)
    rows = [(fields[0], int(fields[1], 16), int(fields[7], 16)) for fields in map(str.split, lines)]
    fitting = [(mask.bit_count(), name) for name, start, mask in rows if number & mask == start]
    return max(fitting)[1] if fitting and not address.startswith("127.") else ""


def can_limit_process() -> bool:
    """Return whether `limit_process` works on this system: Windows has no such limits."""
    return resource is not None


def limit_process(memory_bytes: int, processor_s: int, file_bytes: int) -> None:
    """Limit this process and its children for good: address space, processor time, and the size of each file written.

    Beyond them memory is not allocated, a signal ends the process, and writing fails. Limits are only ever lowered.

    Raises:
        OSError: where the system has no such limits.
    """
    if resource is None:
        raise OSError("this system cannot limit a process")
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: processor_s,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for kind, wanted in limits.items():
        _, highest = resource.getrlimit(kind)
        value = wanted if highest == resource.RLIM_INFINITY else min(wanted, highest)
        resource.setrlimit(kind, (value, value))
