"""Processes that may die, or start others: forked from a server that has imported torch, which saves seconds each."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

from cluster import worker_processes

Result = TypeVar("Result")

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("tests.support.failures.faults", "torch._dynamo"),
        *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.db.utils"),
    ]
)


def settle(environment: dict[str, str]) -> None:
    """In such a process: its environment, which would be the server's, one thread, and workers that are forked.

    `launch_local` spawns its workers, and each imports torch anew. Tests that start the command by itself
    (`tests.support.trainer.command`) show the spawned ones.
    """
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    worker_processes.START_METHOD = "fork"


def in_new_process(function: Callable[..., Result], *arguments: object) -> Result:
    """What `function` returns or raises, in a process of its own."""
    with ProcessPoolExecutor(1, CONTEXT, settle, (dict(os.environ),)) as pool:
        return pool.submit(function, *arguments).result()
