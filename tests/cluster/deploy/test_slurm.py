"""The scripts for Slurm: clean by shellcheck, and a run's life on a real Slurm."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.run_directory import newest_step
from common.code import ROOT
from tests.support.clusters.slurm import Slurm, started_slurm

SCRIPTS = sorted((ROOT / "cluster" / "deploy" / "slurm").glob("*.sbatch"))
SMALL = (
    *("--preset", "demo", "--workers.num_workers", "1", "--train.global_batch_size", "4", "--run.name", "run"),
    *("--model.channel_multipliers", "[1]", "--model.num_res_blocks", "1", "--model.attention_resolutions", "[8]"),
    *("--train.log_every_steps", "1", "--checkpoint.every_steps", "100000"),
)


@pytest.mark.needs("shellcheck")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    said = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with started_slurm() as slurm:
        yield slurm


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.ray
@pytest.mark.needs("slurmctld")
@pytest.mark.parametrize("script", ["ray.sbatch", "torchrun.sbatch"])
def test_a_run_is_preempted_with_a_checkpoint_requeued_and_finished(
    slurm: Slurm, script: str, data: Path, tmp_path: Path
) -> None:
    """USR1 to the batch script is what Slurm sends before the time is up, or a preemption."""
    where = ("--data.path", str(data), "--run.storage", str(tmp_path))
    job = slurm.submit(script, *SMALL, *where, "--train.num_steps", "400")
    spool = tmp_path / "run" / "spool" / "train.jsonl"
    slurm.wait_for(lambda: spool.exists() and '"step": 5,' in spool.read_text())
    slurm("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_for(lambda: slurm.state(job) in ("PENDING", "REQUEUED"))
    assert "requeued" in slurm.log(job)
    stopped = newest_step(tmp_path / "run")
    assert 5 <= stopped < 400
    slurm("scontrol", "update", f"jobid={job}", "starttime=now+5seconds")  # Slurm itself waits two minutes
    slurm.wait_for(lambda: f"training from step {stopped} to 400" in slurm.log(job))
    slurm.wait_for(lambda: slurm.state(job) == "COMPLETED", 600)
    assert newest_step(tmp_path / "run") == 400
