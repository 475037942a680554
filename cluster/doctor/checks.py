"""From what the nodes say of themselves to one line for each check: good, or what to do."""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.doctor.node import PACKAGES, Asked
from common.redaction import redacted

Nodes = Mapping[str, Mapping[str, Any]]
"""What each node says (`cluster.doctor.node.look`), by its name."""

_MIN_FREE_GIB = 10.0
_MAX_CLOCK_SECONDS = 2.0


@dataclass(frozen=True)
class Check:
    """One line. good: None where there was nothing to check."""

    name: str
    good: bool | None
    says: str

    def __str__(self) -> str:
        return f"{'-' if self.good is None else 'ok' if self.good else 'NO':2}  {self.name}: {self.says}"


def check_nodes(nodes: Nodes, asked: Asked, seen: set[str], constraints: Path) -> list[Check]:
    """All that needs no second look. seen: names in the storage folder, as the asking process sees them after every
    node has written."""
    return [
        check_versions(nodes, constraints),
        check_gpus(nodes, asked.gpus),
        check_compilers(nodes),
        check_storage(nodes, seen, asked.storage),
        check_disk(nodes),
        check_data(nodes, asked.data),
        check_mlflow(nodes, asked.tracking_uri),
    ]


def check_versions(nodes: Nodes, constraints: Path) -> Check:
    """Every node has this Python, and the versions that constraints.txt names; without that file, one of each."""
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    pinned = pins(constraints) if constraints.is_file() else {}
    wrong = []
    for name, node in nodes.items():
        if not node["python"].startswith(f"{ours}."):
            wrong.append(f"{name} has Python {node['python']}, not {ours}")
        for package in PACKAGES:
            version = node["versions"].get(package, "").partition("+")[0]
            wanted = pinned.get(package) or _most_frequent(nodes, package)
            if not version or version != wanted:
                wrong.append(f"{name} has {package} {version or 'not at all'}, not {wanted or 'installed anywhere'}")
    if wrong:
        return Check("versions", False, f"{'; '.join(wrong)}: install with --constraint constraints.txt on every node")
    compared = "those of constraints.txt" if pinned else "the same on every node; no constraints.txt to compare with"
    return Check("versions", True, f"Python {ours}; {', '.join(PACKAGES)} are {compared}")


def _most_frequent(nodes: Nodes, package: str) -> str:
    return Counter(node["versions"].get(package, "").partition("+")[0] for node in nodes.values()).most_common(1)[0][0]


def pins(constraints: Path) -> dict[str, str]:
    """The versions that a constraints file names, by package, without what stands behind a plus."""
    lines = [line.strip() for line in constraints.read_text().splitlines() if "==" in line and line[0] != "#"]
    return {name.lower(): version.partition("+")[0] for name, _, version in (line.partition("==") for line in lines)}


def check_gpus(nodes: Nodes, expects_gpus: bool) -> Check:
    """Every node has GPUs of one kind, or none has."""
    kinds = {name: ", ".join(node["gpus"]) or "none" for name, node in nodes.items()}
    if len(set(kinds.values())) > 1:
        listed = "; ".join(f"{name}: {kind}" for name, kind in kinds.items())
        return Check("GPUs", False, f"{listed}: the slowest sets the pace; train on nodes of one kind")
    first = next(iter(nodes.values()))
    if not first["gpus"]:
        what_to_do = "install the driver and a CUDA build of torch" if expects_gpus else "train on CPUs"
        return Check("GPUs", not expects_gpus, f"none that torch sees: {what_to_do}")
    return Check("GPUs", True, f"{', '.join(first['gpus'])} on every node; CUDA {first['cuda']}, NCCL {first['nccl']}")


def check_compilers(nodes: Nodes) -> Check:
    """g++ for torch.compile; nvcc besides where DeepSpeed builds for GPUs."""
    missing = [
        f"{compiler} on {name}"
        for name, node in nodes.items()
        for compiler, is_there in node["compilers"].items()
        if not is_there and (compiler != "nvcc" or node["gpus"])
    ]
    if missing:
        advice = "install, or train without --workers.compile and --train.engine zero"
        return Check("compilers", False, f"missing: {', '.join(missing)}; {advice}")
    return Check("compilers", True, "there for torch.compile and DeepSpeed")


def check_storage(nodes: Nodes, seen: set[str], storage: str) -> Check:
    if not storage:
        return Check("storage", None, "not looked at: give --storage, the folder of --run.storage")
    found = {name: node["storage"] for name, node in nodes.items()}
    bad = [f"{name}: {node['error']}" for name, node in found.items() if node["error"]]
    bad += [
        f"{name} has another folder there"
        for name, node in found.items()
        if not node["error"] and not (node["sees"] and node["wrote"] in seen)
    ]
    if bad:
        advice = f"every node must write to one shared folder at {storage}"
        return Check("storage", False, f"{'; '.join(bad)}: {advice}")
    return Check("storage", True, f"{storage}: every node writes, syncs and renames there, and sees the others' files")


def check_disk(nodes: Nodes) -> Check:
    free = [
        node["storage"]["free_gib"] for node in nodes.values() if node.get("storage", {}).get("free_gib") is not None
    ]
    if not free:
        return Check("free disk", None, "not looked at: it needs a --storage that can be written")
    if min(free) < _MIN_FREE_GIB:
        return Check("free disk", False, f"{min(free):.1f} GiB, less than {_MIN_FREE_GIB:.0f}: checkpoints need room")
    return Check("free disk", True, f"{min(free):.0f} GiB")


def check_data(nodes: Nodes, data: str) -> Check:
    """One data set, whichever node reads it."""
    if not data or ("://" in data and not data.startswith("http")) or data.startswith("demo:"):
        what = f"not looked at: {redacted(data)} is neither a folder nor a web address" if data else "give --data"
        return Check("data", None, what if data else f"not looked at: {what}, what --data.path will be")
    missing = [f"{name}: {node['data']['error']}" for name, node in nodes.items() if node["data"]["error"]]
    if missing:
        advice = f"{redacted(data)} must be a packed data set that every node reads"
        return Check("data", False, f"{redacted('; '.join(missing))}: {advice}")
    digests = {node["data"]["digest"] for node in nodes.values()}
    if len(digests) > 1:
        listed = ", ".join(f"{name} {node['data']['digest'][:12]}" for name, node in nodes.items())
        return Check("data", False, f"other data sets on other nodes ({listed}): let {data} be one folder")
    return Check("data", True, f"{redacted(data)}: every node reads the data set {digests.pop()[:12]}")


def check_mlflow(nodes: Nodes, tracking_uri: str) -> Check:
    """Whether a server answers every node; a database in the storage folder needs none."""
    if not tracking_uri.startswith(("http://", "https://")):
        return Check("MLflow", None, "not looked at: give --tracking-uri, if a server is used")
    shown = redacted(tracking_uri)
    away = [f"{name}: {node['mlflow']}" for name, node in nodes.items() if node["mlflow"]]
    if away:
        advice = "runs keep their metrics until it answers; start it, or open the way to it"
        return Check("MLflow", False, f"{shown} does not answer ({redacted('; '.join(away))}): {advice}")
    return Check("MLflow", True, f"{shown} answers")


def check_clocks(offsets: Mapping[str, float]) -> Check:
    """offsets: seconds by which each node's clock is ahead of this one's. Logs go by them; leases do not."""
    off = {name: offset for name, offset in offsets.items() if abs(offset) > _MAX_CLOCK_SECONDS}
    if off:
        listed = ", ".join(f"{name} {offset:+.1f} s" for name, offset in off.items())
        return Check("clocks", False, f"{listed}: times in logs and MLflow will not fit; run chrony or ntpd there")
    if len(offsets) < 2:
        return Check("clocks", None, "one node: nothing to compare")
    return Check("clocks", True, f"within {max(map(abs, offsets.values())):.2f} s")


def check_network(bytes_per_second: float | None, num_members: int) -> Check:
    if bytes_per_second is None:
        return Check("network", None, "one node: nothing to connect")
    return Check("network", True, f"{num_members} nodes sum tensors by gloo at {bytes_per_second / 1e9:.2f} GB/s each")
