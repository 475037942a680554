"""Jobs on a real Ray cluster by `python -m cluster submit | logs | stop`."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.code import PACKAGES, ROOT
from tests.support.clusters.cluster import Cluster

pytestmark = [pytest.mark.heavy, pytest.mark.ray]


def test_a_job_is_followed_from_anywhere_by_the_address_of_the_dashboard(cluster: Cluster, tmp_path: Path) -> None:
    """Without what `up` remembers, as on another machine: with the token and the address alone."""
    elsewhere = cluster.environment | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, str(ROOT / "trainer" / "rayddpm.py"), "cluster", "submit", "--program", "data"]
    where = ("--address", cluster.dashboard)
    ended = subprocess.run(
        [*command, *where, "--", "demo", "digits", str(tmp_path / "data"), "--num-images", "8"],
        cwd=tmp_path,
        env=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "data" / "manifest.json").exists()
    refused = subprocess.run(
        [*command, "--", "demo", "digits"], cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "give the dashboard of another by --address http://HOST:8265" in refused.stderr


def test_a_job_carries_the_code_and_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    code = "import sys; from cluster.submit import Jobs; jobs = Jobs(sys.argv[1]); job = jobs.submit(sys.argv[2]); "
    code += "jobs.wait(job); print(jobs.succeeded(job))"
    entrypoint = f"ls -A > {tmp_path}/listed"
    ended = subprocess.run(
        [sys.executable, "-c", code, cluster.dashboard, entrypoint],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.endswith("True\n"), ended.stdout + ended.stderr
    assert {*(tmp_path / "listed").read_text().split()} == {*PACKAGES, "constraints.txt"}


def test_a_job_that_is_not_there_is_refused_with_what_is(cluster: Cluster) -> None:
    for verb in ("logs", "stop"):
        missing = cluster(verb)
        assert missing.returncode == 2
        assert "JOB is missing" in missing.stderr
        unknown = cluster(verb, "rayddpm-nosuchjob")
        assert unknown.returncode == 2
        assert "error: there is no job rayddpm-nosuchjob" in unknown.stderr
        assert "Traceback" not in unknown.stderr
