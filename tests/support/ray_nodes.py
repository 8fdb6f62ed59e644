"""A Ray cluster whose nodes come and go. Run by tests/mapping/test_ray.py.

    python -m tests.support.ray_nodes

Each node has its own processes and object store. Prints the address; then reads lines: "add" with variables of the
node's environment (NAME=VALUE), or "kill", which ends the last node by SIGKILL. Answers each with a line.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray.cluster_utils import Cluster

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
HEALTH = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


def answer(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(folder: str) -> None:
    head = NODE | {"temp_dir": folder, "include_dashboard": False, "_system_config": HEALTH}
    cluster, nodes = Cluster(initialize_head=True, head_node_args=head), []
    answer(cluster.address)
    try:
        for line in sys.stdin:
            action, *variables = line.split()
            if action == "add":
                nodes.append(cluster.add_node(**NODE, env_vars=dict(one.split("=") for one in variables)))
            else:
                cluster.remove_node(nodes.pop(), allow_graceful=False)
            answer(action)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    # Cluster writes its address there, for ray.init("auto").
    Path("/tmp", "ray").mkdir(exist_ok=True)
    # The path of a socket must be short.
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        main(short)
