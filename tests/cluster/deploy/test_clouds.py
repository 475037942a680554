"""The cluster launcher's files against Ray's own schema, and what they promise."""

from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import fillout_defaults, validate_config

from common.code import ROOT

FOLDER = ROOT / "cluster" / "deploy" / "clouds"


@pytest.fixture(params=["aws", "gcp"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{request.param}.yaml").read_text())


def test_the_schema_accepts_them_and_not_a_misspelling(config: dict[str, Any]) -> None:
    validate_config(fillout_defaults(config))
    config["available_node_types"]["gpu_spot"]["max_worker"] = 3
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(fillout_defaults(config))


def is_spot(node: dict[str, Any]) -> bool:
    """By the cloud's own words."""
    given = node["node_config"]
    market = given.get("InstanceMarketOptions", {}).get("MarketType")
    return market == "spot" or any(each.get("provisioningModel") == "SPOT" for each in given.get("scheduling", []))


def test_workers_may_be_taken_back_and_the_head_may_not(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert {name: is_spot(node) for name, node in types.items()} == {"head": False, "gpu_spot": True}
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}  # no worker of a run there


def test_runs_outlive_the_cluster_and_idle_machines_are_given_back(config: dict[str, Any]) -> None:
    assert any("mount -t nfs" in command and command.endswith("/runs") for command in config["initialization_commands"])
    assert "--volume /runs:/runs" in config["docker"]["run_options"]
    assert 0 < config["idle_timeout_minutes"] <= 30
    assert config["provider"]["cache_stopped_nodes"] is False


def test_rays_api_asks_for_a_token_and_listens_on_the_head_alone(config: dict[str, Any]) -> None:
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    started = [command for command in starts if "ray start" in command]
    assert len(started) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in started)
    assert "--dashboard-host=127.0.0.1" in started[0]
    assert "~/.ray/auth_token" in config["file_mounts"]
