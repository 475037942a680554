"""The door of this room: `python -m models sample|inspect|likelihood|export|import`, see `--help`."""

from __future__ import annotations

import sys

from models.cli.door import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
