"""Workers talk over the interface their cluster is reached by: looked up, and between hosts of this machine."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from cluster.network import GLOO, NCCL, address_towards, cannot_connect, interface_holding, outer_address, use_interface
from common.code import ROOT
from tests.support.clusters.hosts import INTERFACE, connected_hosts

LOOK = "import sys; from cluster.network import *; address = outer_address(sys.argv[1]); print(use_interface(address))"
TRAIN = """
import os, torch.distributed as dist, torch
from pathlib import Path
from cluster.launch import Resources, launch_local
def add(worker, folder):
    total = torch.tensor(float(worker.rank + 1))
    dist.all_reduce(total)
    print("sum", total.item(), os.environ["GLOO_SOCKET_IFNAME"])
launch_local(add, Path.cwd(), Resources(2, False, 1, 0, 60))
"""


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (GLOO, NCCL):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return monkeypatch


def test_every_address_of_this_machine_has_its_interface() -> None:
    listed = [
        (found.address, name)
        for name, addresses in psutil.net_if_addrs().items()
        for found in addresses
        if found.family.name in ("AF_INET", "AF_INET6")
    ]
    assert listed
    for address, name in listed:
        assert interface_holding(address.partition("%")[0]) == name
    assert interface_holding("127.0.1.1") == interface_holding("127.0.0.1")
    assert interface_holding("203.0.113.7") is None


def test_gloo_and_nccl_get_the_interface(unset: pytest.MonkeyPatch) -> None:
    loopback = interface_holding("127.0.0.1")
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert use_interface("127.0.0.1") == f"127.0.0.1 by {loopback}"
    assert (os.environ[GLOO], os.environ[NCCL]) == (loopback, f"={loopback}")


def test_what_the_user_has_set_stays(unset: pytest.MonkeyPatch) -> None:
    unset.setenv(GLOO, "ib0")
    assert use_interface("127.0.0.1") == "127.0.0.1 by ib0"
    assert os.environ[GLOO] == "ib0"
    assert os.environ[NCCL].startswith("=")


def test_workers_that_do_not_connect_are_one_line() -> None:
    error = RuntimeError("Gloo connectFullMesh failed with:\n  [c10] Connection refused")
    line = cannot_connect(["10.0.0.1 by eth0", "10.0.0.2 by eth0"], error)
    assert "\n" not in line
    assert "Connection refused" in line
    assert GLOO in line


def test_a_host_that_is_its_own_master_takes_its_outer_address(tmp_path: Path) -> None:
    with connected_hosts(1, tmp_path) as (host,):
        answer = host.run(sys.executable, "-c", LOOK, host.name, environment={"PYTHONPATH": str(ROOT)})
    assert answer.strip() == f"{host.address} by {INTERFACE}"


def test_two_outer_addresses_are_a_question_for_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"a0": ["192.0.2.1"], "b0": ["192.0.2.2"], "lo": ["127.0.0.1"]}
    snic = type(psutil.net_if_addrs()["lo"][0])
    made = {name: [snic(2, address, None, None, None) for address in found] for name, found in both.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: made)
    with pytest.raises(OSError, match=r"2 other addresses.*set GLOO_SOCKET_IFNAME"):
        outer_address("127.0.0.1")


@pytest.mark.slow
def test_workers_on_two_hosts_connect_though_their_names_lead_to_loopback(tmp_path: Path) -> None:
    common = {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with connected_hosts(2, tmp_path) as hosts:
        place = {"MASTER_ADDR": hosts[0].address, "MASTER_PORT": "29500", **common}
        workers = [
            host.start(sys.executable, "-c", TRAIN, environment={**place, "RANK": str(rank)}, cwd=tmp_path)
            for rank, host in enumerate(hosts)
        ]
        outputs = [worker.communicate()[0] for worker in workers]
    for output in outputs:
        assert f"sum 3.0 {INTERFACE}" in output, output
