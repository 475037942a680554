"""What checkpoints of a run are called: the rule for those who write them and those who read them alone."""

import re

CHECKPOINTS = "checkpoints"
"""Folder of a run's directory that holds them."""
COMPLETE = "COMPLETE.json"
"""File of a committed checkpoint, written last."""
CHECKPOINT_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,})-[0-9a-z]+")
"""The whole name, with the step. Folders of other names, such as a user's copies, are none of the run's."""
