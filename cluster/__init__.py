"""Where things run and what outlives them: Ray launch and jobs, atomic storage, leases, the MLflow spool."""
