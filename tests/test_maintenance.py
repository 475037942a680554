"""What maintainers rely on: one version everywhere, and files for tools that read them."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    for name in ("README.md", "README.zh-CN.md", "docs/CLUSTER.md"):
        tags = re.findall(r"rayddpm:(\d[\d.]*\d)", (ROOT / name).read_text())
        assert tags
        assert set(tags) == {version}


def test_a_commit_is_checked_by_targets_that_ci_runs_too() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    phases = " ".join(re.findall(r"^phase (.*)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)).split()
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].split()[0] == "make"
        assert set(hook["entry"].split()[1:]) <= set(phases)


def test_forms_for_issues_ask_for_something_and_name_each_answer_once() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form["name"]
        assert form["description"]
        names = [field["id"] for field in form["body"]]
        assert len(set(names)) == len(names)
        assert any(field.get("validations", {}).get("required") for field in form["body"])
