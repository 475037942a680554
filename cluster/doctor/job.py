"""The checks as a job of the cluster: from wherever its dashboard is reached, on whatever its nodes are."""

import shlex

from cluster.doctor.node import Asked, without_user
from cluster.submit import Jobs

_MARKS = ("ok  ", "NO  ", "-   ")


def examine_by_job(jobs: Jobs, asked: Asked) -> list[str]:
    """The lines of all checks. Raises RuntimeError if the job did not come to them."""
    job = jobs.submit(shlex.join(["python", "-m", "cluster", "doctor", "--inside", *options(asked)]))
    try:
        jobs.wait(job)
    finally:
        jobs.stop(job)
    log = jobs.logs(job)
    lines = [line for line in log.splitlines() if line.startswith(_MARKS)]
    if not lines:
        raise RuntimeError(f"the checks did not run, as job {job}: {log.strip()[-800:] or 'it wrote nothing'}")
    return lines


def options(asked: Asked) -> list[str]:
    """As options of the command. What a job is called with is seen by all users of a cluster: no password is in it."""
    values = {"storage": asked.storage, "data": asked.data, "tracking-uri": without_user(asked.tracking_uri)}
    given = [option for name, value in values.items() if value for option in (f"--{name}", value)]
    return given + (["--gpus"] if asked.gpus else [])
