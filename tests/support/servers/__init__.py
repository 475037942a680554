"""Real servers for tests: MLflow, PostgreSQL, files over HTTP."""
