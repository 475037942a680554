"""The command line of the data: python -m data_pipeline COMMAND, see --help."""

import sys

from common.entry import start

if __name__ == "__main__":
    sys.exit(start("data_pipeline.commands"))
