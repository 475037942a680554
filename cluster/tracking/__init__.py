"""From a run to MLflow: what is said is kept on the run's own storage first, then sent."""
