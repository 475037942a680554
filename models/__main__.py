"""The command line of the models: python -m models COMMAND, see --help."""

import sys

from common.entry import start

if __name__ == "__main__":
    sys.exit(start("models.cli.commands"))
