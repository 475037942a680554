"""The command line of the cluster: python -m cluster COMMAND, see --help."""

import sys

from common.entry import start

if __name__ == "__main__":
    sys.exit(start("cluster.commands"))
