"""Ray nodes on one machine, a processor each, in a process of its own: `add`, `drain`, `kill` on standard input.

`ray start` joins no cluster on loopback; this is what Ray's own tests of lost nodes use.
"""

import os
import subprocess
import sys
from typing import Any

from cluster.local import LOCAL_SETTINGS, client_environment


def drain(address: str, node_id: str) -> None:
    """Say that a node will be taken away in a minute, as an autoscaler or a pod's preStop hook does."""
    why = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "drill")
    which = ("--address", address, "--node-id", node_id, "--deadline-remaining-seconds", "60")
    subprocess.run(["ray", "drain-node", *which, *why], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    # Ray reads them when it is imported.
    os.environ.update(client_environment(create_token=True) | LOCAL_SETTINGS)
    from ray.cluster_utils import Cluster

    place: dict[str, Any] = {"num_cpus": 1, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args=place)
    nodes = [cluster.add_node(**place)]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "add":
            nodes.append(cluster.add_node(**place))
        elif line.strip() == "drain":
            drain(cluster.address, nodes[-1].node_id)
        else:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
