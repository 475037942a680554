"""The door: python -m data_pipeline pack|demo|verify|order|audit."""

import sys

from data_pipeline.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
