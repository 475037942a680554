"""The commands of `python -m models`, and what only they need."""
