"""All checks: of this machine, or of every node of the Ray cluster that this process may join."""

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.doctor.checks import Check, check_clocks, check_network, check_nodes
from cluster.doctor.node import Asked, look, remove_traces, use_storage
from common.code import CONSTRAINTS

Look = Callable[[str], Mapping[str, Mapping[str, Any]]]
"""What each node says, by its name; given the token under which they write into the storage folder."""


def examine_here(asked: Asked) -> list[Check]:
    """This machine alone."""
    return [
        Check("Ray", None, "no cluster is up: this machine alone was looked at; python -m cluster up starts one"),
        *_examine(asked, lambda token: {os.uname().nodename: look(asked, token)}),
    ]


def examine_cluster(asked: Asked) -> list[Check]:
    """Every node that is alive. Raises ConnectionError if no cluster answers."""
    from cluster.doctor.nodes import joined, look_at_nodes, measure_clocks, measure_network

    with joined() as has:
        checks = _examine(asked, lambda token: look_at_nodes(asked, token))
        offsets = measure_clocks()
        resources = f"nodes: {len(offsets)}, CPUs: {has.get('CPU', 0):g}, GPUs: {has.get('GPU', 0):g}"
        return [Check("Ray", True, resources), *checks, check_clocks(offsets), _network(measure_network, len(offsets))]


def _examine(asked: Asked, look_at_all: Look) -> list[Check]:
    token = f".doctor-{uuid.uuid4().hex[:12]}"
    if not asked.storage:
        return check_nodes(look_at_all(token), asked, set(), CONSTRAINTS)
    storage = Path(asked.storage)
    try:
        _leave(storage, token)
        nodes = look_at_all(token)
        # Each by its name: a network folder may remember for a while which names a folder has.
        seen = {name for node in nodes.values() if (name := node["storage"]["wrote"]) and (storage / name).exists()}
    finally:
        remove_traces(storage, token)
    return check_nodes(nodes, asked, seen, CONSTRAINTS)


def _leave(storage: Path, token: str) -> None:
    """The file that every node must see. If it cannot be written, the nodes say why."""
    written = use_storage(storage, token)
    if not written["error"]:
        os.rename(storage / written["wrote"], storage / token)


def _network(measure: Callable[[], float], num_nodes: int) -> Check:
    if num_nodes < 2:
        return check_network(None, num_nodes)
    try:
        return check_network(measure(), num_nodes)
    except ConnectionError as error:
        return Check("network", False, f"{error}: let nodes reach each other on all ports (docs/CLUSTER.md)")
