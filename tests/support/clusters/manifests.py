"""Kubernetes manifests as kustomize renders them, and the schemas they must meet."""

import functools
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from common.code import ROOT
from tests.support.machine import cannot_run

FOLDER = ROOT / "cluster" / "deploy" / "kubernetes"
OPEN = "x-kubernetes-preserve-unknown-fields"


@functools.cache
def rendered(name: str) -> list[dict[str, Any]]:
    """The objects of an overlay. kubectl is in no package of Debian's stable that knows today's kustomize."""
    program = next((known for known in ("kustomize", "kubectl") if shutil.which(known)), None)
    if program is None:
        pytest.skip("neither kustomize nor kubectl is here")
    command = [program, "build"] if program == "kustomize" else [program, "kustomize"]
    made = subprocess.run([*command, str(FOLDER / name)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return list(yaml.load_all(made.stdout, yaml.CSafeLoader))


@functools.cache
def custom_schema(kind: str, version: str) -> dict[str, Any]:
    """The published schema of a kind of KubeRay's or Kueue's, which refuses what it does not know."""
    folder = next((found for up in ROOT.parents if (found := up / "shared" / "crds").is_dir()), None)
    if folder is None:
        cannot_run("the schemas of KubeRay and Kueue are not beside this checkout, in shared/crds")
    (path,) = folder.glob(f"*_{kind.lower()}s.yaml")
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    schema = next(found["schema"]["openAPIV3Schema"] for found in versions if found["name"] == version)
    schema["properties"]["metadata"][OPEN] = True
    return closed(schema)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """As the API server reads it: fields that are not listed are errors, integers may stand for strings."""
    if schema.get("x-kubernetes-int-or-string"):
        return {}
    made = dict(schema)
    if "properties" in schema:
        made["properties"] = {name: closed(field) for name, field in schema["properties"].items()}
        if not schema.get(OPEN):
            made["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = closed(schema["items"])
    return made


def pod_specs(thing: object, name: str = "") -> list[dict[str, Any]]:
    """Every pod that an object may start."""
    if isinstance(thing, dict):
        here = [thing] if "containers" in thing else []
        return here + [found for value in thing.values() for found in pod_specs(value)]
    return [found for value in thing for found in pod_specs(value)] if isinstance(thing, list) else []
