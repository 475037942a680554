"""The command line of training: `python trainer/main.py --preset NAME [--section.field VALUE ...]`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path; the packages are one level up.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.entry import guarded, start

_INTERRUPTED = "interrupted before training began; the same command starts it, or goes on from its newest checkpoint"


def main(arguments: list[str], prog: str | None = None) -> int:
    """Exit code: 0 trained (or nothing left to train), 1 workers failed, 2 the user's error, 130 interrupted."""

    def body() -> int:
        from trainer.config.options import PROG, parse

        parse(arguments, prog or PROG)  # help and mistakes come before torch is imported, which takes seconds
        from trainer.command import main as train

        return train(arguments)

    return guarded(body, _INTERRUPTED)


if __name__ == "__main__":
    sys.exit(start("trainer.main"))
