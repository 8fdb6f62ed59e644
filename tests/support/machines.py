"""Two network namespaces with a link between them: two machines, as far as their networks go."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

ADDRESSES = ("10.77.0.1", "10.77.0.2")
TOOLS = ("unshare", "nsenter", "ip")


class NoNamespacesError(Exception):
    """This system does not let a user make network namespaces; the message says why."""


@dataclass(frozen=True)
class Machine:
    """A network namespace with an address."""

    address: str
    holder: int
    """A process in it, which lives as long as the namespace is needed."""

    def command(self, *arguments: str) -> list[str]:
        """Return a command that runs there, with the files of this machine."""
        target = str(self.holder)
        return ["nsenter", "--target", target, "--user", "--net", "--preserve-credentials", *arguments]


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Yield two machines that reach each other alone, under `ADDRESSES`; the name of this host leads elsewhere.

    Raises:
        NoNamespacesError: if this system cannot make them.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise NoNamespacesError(f"{missing[0]} is not installed")
    with ExitStack() as stack:
        first = Machine(ADDRESSES[0], stack.enter_context(_hold("unshare", "--user", "--map-root-user", "--net")))
        second = Machine(ADDRESSES[1], stack.enter_context(_hold(*first.command("unshare", "--net"))))
        peer = ("peer", "name", "link1", "netns", str(second.holder))
        _run(first.command("ip", "link", "add", "link0", "type", "veth", *peer))
        for number, machine in enumerate((first, second)):
            _run(machine.command("ip", "address", "add", f"{machine.address}/24", "dev", f"link{number}"))
            for name in ("lo", f"link{number}"):
                _run(machine.command("ip", "link", "set", name, "up"))
        yield first, second


@contextmanager
def _hold(*unshare: str) -> Iterator[int]:
    """Yield the id of a process in a new namespace, which ends with the block or with this process."""
    command = [*unshare, "sh", "-c", "echo ready; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout and holder.stderr
        try:
            if holder.stdout.readline() != b"ready\n":
                raise NoNamespacesError(holder.stderr.read().decode().strip())
            yield holder.pid
        finally:
            holder.stdin.close()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNamespacesError(f"{' '.join(command)}: {done.stderr.strip()}")
