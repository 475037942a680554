"""The command line of evaluation: python -m eval COMMAND, see --help."""

import sys

from common.entry import start

if __name__ == "__main__":
    sys.exit(start("eval.cli.commands"))
