"""From what nodes say to a line: what differs between nodes, which one machine cannot show."""

from pathlib import Path
from typing import Any

import pytest

from cluster.doctor.checks import check_clocks, check_data, check_gpus, check_nodes, check_storage, check_versions, pins
from cluster.doctor.node import Asked, look

H100 = "NVIDIA H100 80GB HBM3 79 GiB"


@pytest.fixture(scope="module")
def node() -> dict[str, Any]:
    """What this machine says."""
    return look(Asked(), "token")


def test_a_node_of_another_python_or_package_is_named(node: dict[str, Any], tmp_path: Path) -> None:
    other = node | {"python": "3.9.2", "versions": node["versions"] | {"ray": "2.0.0"}}
    check = check_versions({"a": node, "b": other, "c": node}, tmp_path / "constraints.txt")
    assert check.good is False
    assert "b has Python 3.9.2" in check.says
    assert "b has ray 2.0.0, not " in check.says
    assert "a has" not in check.says
    assert "c has" not in check.says


def test_a_package_that_is_missing_everywhere_is_named(node: dict[str, Any], tmp_path: Path) -> None:
    without = node | {"versions": {name: version for name, version in node["versions"].items() if name != "mlflow"}}
    (tmp_path / "constraints.txt").write_text("mlflow==3.1.0\n")
    for constraints in (tmp_path / "constraints.txt", tmp_path / "none.txt"):
        check = check_versions({"a": without, "b": without}, constraints)
        assert check.good is False
        assert "a has mlflow not at all" in check.says
        assert "b has mlflow not at all" in check.says


def test_a_build_for_another_device_is_the_same_version(node: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# exactly\n\ntorch==9.1.0+cpu\n")
    assert pins(tmp_path / "constraints.txt") == {"torch": "9.1.0"}
    gpu, cpu = (node | {"versions": node["versions"] | {"torch": version}} for version in ("9.1.0+cu132", "9.1.0"))
    assert check_versions({"a": gpu, "b": cpu}, tmp_path / "constraints.txt").good


def test_nodes_with_other_gpus_are_a_fault(node: dict[str, Any]) -> None:
    fast = node | {"gpus": [H100], "cuda": "13.2", "nccl": "2.29"}
    assert check_gpus({"a": fast, "b": fast}, expects_gpus=True).says == f"{H100} on every node; CUDA 13.2, NCCL 2.29"
    uneven = check_gpus({"a": fast, "b": fast | {"gpus": [H100, H100]}}, expects_gpus=False)
    assert uneven.good is False
    assert f"b: {H100}, {H100}" in uneven.says


@pytest.mark.parametrize(
    ("sees", "seen"), [(False, {"token-a", "token-b"}), (True, {"token-a"})], ids=["one way", "the other way"]
)
def test_a_folder_that_is_not_the_same_on_every_node_is_a_fault(sees: bool, seen: set[str]) -> None:
    good = {"sees": True, "wrote": "token-a", "free_gib": 100.0, "error": ""}
    nodes = {"a": {"storage": good}, "b": {"storage": good | {"sees": sees, "wrote": "token-b"}}}
    check = check_storage(nodes, seen, "/runs")
    assert check.good is False
    assert "b has another folder there" in check.says
    assert "a has" not in check.says


def test_two_data_sets_under_one_path_are_a_fault() -> None:
    nodes = {name: {"data": {"digest": name * 64, "error": ""}} for name in ("a", "b")}
    check = check_data(nodes, "/data")
    assert check.good is False
    assert "b bbbbbbbbbbbb" in check.says
    assert check_data({"a": nodes["a"]}, "/data").good


def test_a_clock_that_is_off_is_named() -> None:
    check = check_clocks({"a": 0.01, "b": -7.5})
    assert check.good is False
    assert "b -7.5 s" in check.says
    assert check_clocks({"a": 0.01, "b": -0.5}).says == "within 0.50 s"


def test_what_was_not_asked_for_is_no_fault(node: dict[str, Any], tmp_path: Path) -> None:
    checks = {check.name: check for check in check_nodes({"a": node}, Asked(), set(), tmp_path / "none.txt")}
    assert {name for name, check in checks.items() if check.good is None} == {"storage", "free disk", "data", "MLflow"}
    assert str(checks["data"]).startswith("-   data: not looked at")
