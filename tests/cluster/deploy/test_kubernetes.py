"""Every overlay as kustomize renders it: valid by the published schemas, closed, and of commands that exist."""

import re
import shlex
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from common.code import ROOT
from tests.support.clusters.manifests import FOLDER, custom_schema, pod_specs, rendered
from trainer.config.options import parse

OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
NAMES = [*(f"overlays/{name}" for name in OVERLAYS), "cluster-queue"]
GROUPS_OF_OTHERS = ("ray.io", "kueue.x-k8s.io")


def problems(thing: dict[str, Any]) -> list[str]:
    """What the API server would refuse."""
    group, _, version = thing["apiVersion"].rpartition("/")
    if group in GROUPS_OF_OTHERS:
        schema = custom_schema(
            re.sub(r"y$", "ie", thing["kind"]) if thing["kind"].endswith("y") else thing["kind"], version
        )
        found = jsonschema.Draft202012Validator(schema).iter_errors(thing)
        return [f"{error.json_path}: {error.message}" for error in found]
    try:
        kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return []


def things(name: str, kind: str) -> list[dict[str, Any]]:
    return [thing for thing in rendered(name) if thing["kind"] == kind]


@pytest.mark.parametrize("name", NAMES)
def test_every_object_is_valid(name: str) -> None:
    found = {f"{thing['kind']} {thing['metadata']['name']}": problems(thing) for thing in rendered(name)}
    assert len(found) == len(rendered(name))
    assert {title: said for title, said in found.items() if said} == {}


def test_a_field_that_does_not_exist_is_found() -> None:
    (job,) = things("overlays/gpu", "RayJob")
    assert problems({**job, "spec": {**job["spec"], "entrypont": ""}})
    (page, *_) = things("overlays/gpu", "Deployment")
    assert problems({**page, "spec": {**page["spec"], "replica": 1}})


@pytest.mark.parametrize("name", NAMES[:-1])
def test_every_pod_is_restricted(name: str) -> None:
    """What Kubernetes' pod security standard "restricted" asks for, which the namespace enforces."""
    pods = pod_specs(rendered(name))
    assert len(pods) >= 6
    for pod in pods:
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert not any("hostPath" in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            assert re.search(r":[\w.-]*\d", container["image"]), container["image"]  # pinned, and none is our bare name


@pytest.mark.parametrize("name", NAMES[:-1])
def test_no_secret_is_in_a_manifest(name: str) -> None:
    """They are made by hand (docs/CLUSTER.md): pods name them, and no command line or variable holds one."""
    assert not things(name, "Secret")
    for pod in pod_specs(rendered(name)):
        for container in pod["containers"]:
            words = [*container.get("args", []), *container.get("command", [])]
            given = [variable["value"] for variable in container.get("env", [])]
            assert not [text for text in words + given if re.search(r"://[^/]*:[^/]*@", text)]
    page = (ROOT / "docs" / "CLUSTER.md").read_text()
    used = set(re.findall(r"'secret(?:Name|Ref)': (?:\{'name': )?'([\w-]+)'", str(rendered(name))))
    assert used == set(re.findall(r"create secret generic ([\w-]+)", page))


@pytest.mark.parametrize("name", NAMES[:-1])
def test_entry_points_are_commands_of_ours(name: str) -> None:
    (job,) = things(name, "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["rayddpm", "train"]
    options = parse(words[2:])
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert options.config.workers.num_workers == group["replicas"] == group["maxReplicas"]
    assert (options.config.workers.min_workers or options.config.workers.num_workers) == group["minReplicas"]


def test_only_what_is_named_may_reach_a_pod() -> None:
    policies = things("overlays/gpu", "NetworkPolicy")
    (closing,) = [policy["spec"] for policy in policies if policy["metadata"]["name"] == "default-deny"]
    assert closing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    apps = {pod["metadata"]["labels"]["app"] for pod in _templates(rendered("overlays/gpu"))}
    named = set(re.findall(r"'app': '([\w-]+)'", str([policy["spec"] for policy in policies])))
    assert named <= apps


def test_preemptible_workers_say_so_before_they_go() -> None:
    (job,) = things("overlays/gpu-spot", "RayJob")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    hook = shlex.join(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"])
    line = (
        "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message preStop --deadline-remaining-seconds 60"
    )
    assert line in (ROOT / "docs" / "OPERATIONS.md").read_text()
    assert line in hook
    assert pod["terminationGracePeriodSeconds"] > 60
    (flavor,) = things("cluster-queue", "ResourceFlavor")
    assert pod["nodeSelector"] == flavor["spec"]["nodeLabels"]


def _templates(thing: object) -> list[dict[str, Any]]:
    if isinstance(thing, dict):
        here = [thing] if "containers" in (thing.get("spec") or {}) and "labels" in thing.get("metadata", {}) else []
        return here + [found for value in thing.values() for found in _templates(value)]
    return [found for value in thing for found in _templates(value)] if isinstance(thing, list) else []
