"""Signals to real processes: the first interrupts, the second ends at once, and nothing is left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.code import ROOT

PROGRAM = """
import subprocess, sys, time
from common.interrupt import INTERRUPTED, sigterm_interrupts
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
try:
    with sigterm_interrupts():
        BODY
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(INTERRUPTED)
"""
WAITS = "print(child.pid, flush=True); time.sleep(1000)"
CLEANS_UP_FOR_LONG = """
        try:
            print(child.pid, flush=True); time.sleep(1000)
        finally:
            print("cleaning", flush=True)
            time.sleep(1000)
"""
# A mutex that is locked twice: no signal makes that call return, as none ends a collective.
STUCK_IN_C = """
        import ctypes, threading
        mutex = ctypes.create_string_buffer(64)
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        threading.Timer(1.0, print, [child.pid], {"flush": True}).start()  # by then the main thread waits
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
IS_SENT_IT_AGAIN = """
        import os, signal
        def again(event, arguments):
            if event == "import" and arguments[0] == "psutil":  # which finds the processes below this one
                os.kill(os.getpid(), signal.SIGTERM)
        sys.addaudithook(again)
        print(child.pid, flush=True); time.sleep(1000)
"""
IN_A_DESTRUCTOR = """
        class Slow:
            def __del__(self):
                print(child.pid, flush=True)
                time.sleep(2)
        slow = Slow()
        del slow
        time.sleep(1000)
"""


def started(body: str) -> "tuple[subprocess.Popen[str], int]":
    program = [sys.executable, "-c", PROGRAM.replace("BODY", body.strip())]
    running = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    return running, int(running.stdout.readline())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_interrupts_and_leaves_no_process(number: signal.Signals) -> None:
    running, child = started(WAITS)
    running.send_signal(number)
    output, errors = running.communicate(timeout=60)
    assert (running.returncode, output, errors) == (130, "interrupted\n", "")
    assert not psutil.pid_exists(child)


def test_the_same_signal_to_a_process_and_then_to_its_group_is_one_request() -> None:
    """The second comes while it ends the processes below it."""
    running, child = started(IS_SENT_IT_AGAIN)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130
    assert not psutil.pid_exists(child)
    assert running.communicate() == ("interrupted\n", "")


@pytest.mark.parametrize("body", [CLEANS_UP_FOR_LONG, STUCK_IN_C], ids=["cleans up", "stuck in C"])
def test_a_second_signal_ends_a_process_at_once_whatever_its_main_thread_does(body: str) -> None:
    running, child = started(body)
    running.send_signal(signal.SIGINT)
    time.sleep(1.2)  # sooner it is the same request
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors == "ended at once; what was finished before is kept\n"
    assert not psutil.pid_exists(child)


def test_a_signal_while_a_destructor_runs_is_not_lost() -> None:
    running, _ = started(IN_A_DESTRUCTOR)
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert (running.returncode, output, errors) == (130, "interrupted\n", "")


def test_processes_started_within_are_out_of_reach_of_the_terminal(tmp_path: Path) -> None:
    from common.process import sessions_of_their_own, signals_held_back

    with sessions_of_their_own():
        inside = subprocess.Popen(["sleep", "1000"])
    with signals_held_back():
        held = subprocess.Popen(["sleep", "1000"])
    outside = subprocess.Popen(["sleep", "1000"])
    try:
        assert os.getsid(inside.pid) == inside.pid
        assert os.getsid(outside.pid) == os.getsid(0)
        held.terminate()
        outside.terminate()
        outside.wait()
        assert held.poll() is None
    finally:
        for process in (inside, held, outside):
            process.kill()
            process.wait()
