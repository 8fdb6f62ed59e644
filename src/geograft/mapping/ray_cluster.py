"""Connections to Ray clusters, and how many actors their nodes have room for.

Ray's protocol runs code that it receives: whoever can connect to a cluster can run programs on it, and the other way
round. So the address of a cluster comes from the user alone.
"""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from geograft.cores import usable_cores
from geograft.errors import SettingError

LOCAL = "local"
ACTOR_CPUS = 4
"""Cores of an actor without a GPU; fewer if the smallest node has fewer."""
STORE_BYTES = 80 * 2**20
"""Object store of a local cluster: about the least that Ray takes, since nothing but names goes through it."""
CONNECT_S = 10.0
VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_py_gcs_connect_timeout_s": "10"}
"""No usage statistics; and half a minute to find out that there is no Ray at an address, not two minutes."""


@contextmanager
def connect_to_ray(address: str) -> Iterator[Any]:
    """Connect this process to a Ray cluster, for the block; yields the module ray.

    A local cluster listens on the loopback interface alone, has a token of its own and no dashboard, and leaves no
    files behind; for the first two this process must not have imported ray before.

    Raises:
        SettingError: if Ray is not installed, or the cluster cannot be reached or used.
    """
    variables, options = dict(VARIABLES), dict[str, Any]()
    with ExitStack() as stack:
        if address == LOCAL:
            # The path of Ray's sockets must be short.
            folder = TemporaryDirectory(prefix="geograft-ray-", dir="/tmp" if os.name == "posix" else None)
            variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            # Ray's name for a cluster that listens on loopback, on any system.
            variables |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
            options = {"_temp_dir": stack.enter_context(folder), "num_cpus": usable_cores()}
            options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        else:
            _check_answers(address)
        ray = _import_ray(variables)
        with _undisturbed():
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
            except Exception as error:
                why = " ".join(str(error.__cause__ or error).split())
                raise SettingError(
                    f"--ray {address}: Ray cannot connect ({why}). The driver must run on a node of the cluster, with "
                    "its versions of Ray and Python, and its token."
                ) from error
        stack.callback(ray.shutdown)
        yield ray


def _check_answers(address: str) -> None:
    """Raise SettingError if nothing answers at HOST:PORT; Ray would try it for two minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) >= 2**16:
        raise SettingError(f"--ray {address} is no address of a cluster. Give HOST:PORT of its head, or local.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise SettingError(
            f"--ray {address} cannot be reached ({error}). Start the cluster with `ray start --head`, which prints its "
            "address."
        ) from error


def _import_ray(variables: Mapping[str, str]) -> Any:
    """Import Ray with environment variables that it reads when it is imported, but for those that the user set."""
    if "ray" not in sys.modules:
        os.environ.update({name: value for name, value in variables.items() if name not in os.environ})
    try:
        import ray._private.worker  # noqa: PLC0415  (an extra)
        import ray.util.scheduling_strategies  # noqa: PLC0415
    except ImportError as error:
        raise SettingError("--ray needs Ray: pip install 'geograft[ray]'.") from error
    # It prints the logs of nodes that end on stdout, where our result goes; the driver says what matters of it.
    ray._private.worker.print_to_stdstream = lambda *_args, **_options: None
    return ray


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block, and drop what is printed on stderr in it.

    `ray.init` replaces the one, and its C++ code prints errors there that are raised too.
    """
    before, kept = signal.getsignal(signal.SIGTERM), os.dup(2)
    sys.stderr.flush()
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def actors_by_node(nodes: Mapping[str, Mapping[str, float]], use_gpus: bool) -> dict[str, tuple[int, dict[str, float]]]:
    """Return how many actors nodes with these resources have room for, and what each actor takes; only nodes with any.

    With `use_gpus` and a GPU in the cluster that is one actor for each GPU, and none on other nodes, since all workers
    of a job must be of one kind; else one for every ACTOR_CPUS cores.

    >>> actors_by_node({"a": {"CPU": 16, "GPU": 2}, "b": {"CPU": 8}}, use_gpus=True)
    {'a': (2, {'num_cpus': 4, 'num_gpus': 1})}
    >>> actors_by_node({"a": {"CPU": 9}, "b": {"CPU": 2}, "head": {}}, use_gpus=True)
    {'a': (4, {'num_cpus': 2, 'num_gpus': 0}), 'b': (1, {'num_cpus': 2, 'num_gpus': 0})}
    """
    cpus, gpus = ({key: int(one.get(kind, 0)) for key, one in nodes.items()} for kind in ("CPU", "GPU"))
    if use_gpus and any(gpus.values()):
        return {
            key: (count, {"num_cpus": min(ACTOR_CPUS, cpus[key] // count), "num_gpus": 1})
            for key, count in gpus.items()
            if count
        }
    each = min([ACTOR_CPUS, *(count for count in cpus.values() if count)])
    return {key: (count // each, {"num_cpus": each, "num_gpus": 0}) for key, count in cpus.items() if count}
