"""The door of the trainer: `python trainer/main.py --preset NAME [--section.field VALUE ...]`."""

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; the rooms are one level up.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from trainer.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
