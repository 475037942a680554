"""The one command over all command lines: rayddpm train | data | models | eval | cluster, installed or from here."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path; the packages are one level up. The current folder is never there:
    # it may have a models/ of its own.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.entry import guarded, start

_GROUPS = {
    "train": ("trainer.main", "Train a DDPM; the same command again resumes it."),
    "data": ("data_pipeline.commands", "Pack images into verified shards, check and order them."),
    "models": ("models.cli.commands", "Sample, measure likelihoods, convert and inspect models."),
    "eval": ("eval.cli.commands", "Quality numbers of checkpoints, reports, the registry."),
    "cluster": ("cluster.commands", "A Ray cluster on this machine, jobs, the demo."),
    "completion": ("trainer.completion", "Print a script that completes commands and options in bash or zsh."),
}
"""Command -> the module whose main(arguments, prog) it is, and what it is for."""
_EXAMPLES = (
    "cluster demo digits",
    "data pack ~/photos data/photos --image-size 64",
    "train --preset celebahq64 --data.path data/photos --launcher local",
    "models sample runs/NAME --num-images 64 --output samples",
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    from importlib import import_module

    from common.command_line import choose, version

    def body() -> int:
        given = sys.argv[1:] if arguments is None else arguments
        if not given or given[0] in ("-h", "--help"):
            print(_overview())
            return 0
        if given[0] == "--version":
            print(version())
            return 0
        name = choose(given[0], list(_GROUPS), "rayddpm")
        return int(import_module(_GROUPS[name][0]).main(given[1:], f"rayddpm {name}"))

    return guarded(body, "interrupted")


def run() -> int:
    """The entry point of the installed command."""
    return start("trainer.rayddpm")


def _overview() -> str:
    rows = "\n".join(f"  {name:10}  {text}" for name, (_, text) in _GROUPS.items())
    examples = "\n".join(f"  rayddpm {example}" for example in _EXAMPLES)
    return (
        "usage: rayddpm COMMAND [OPTIONS]\n\nDenoising diffusion models: pack images, train on one machine or many, "
        f"sample, evaluate.\n\ncommands:\n{rows}\n\nexamples:\n{examples}\n\n"
        "rayddpm COMMAND --help explains a command; --version says which version this is."
    )


if __name__ == "__main__":
    sys.exit(run())
