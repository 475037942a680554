"""Hosts on this machine: network namespaces with an address and a name of their own, joined by a bridge.

A host's name resolves to 127.0.1.1 on itself, as on any Debian. The disk is shared.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

INTERFACE = "uplink0"
_NAMED = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'


class Host:
    """One host; `number` is 1 and up."""

    def __init__(self, prefix: str, number: int, folder: Path):
        self.name, self.address = f"{prefix}h{number}", f"10.77.0.{number}"
        self._hosts = folder / f"hosts-{number}"
        self._hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")

    def start(self, *command: str, environment: Mapping[str, str] | None = None, **options: Any) -> "subprocess.Popen":
        """A process on this host."""
        inside = ["unshare", "--mount", "--uts", "sh", "-c", _NAMED, "sh", str(self._hosts), self.name, *command]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *inside], env={**os.environ, **(environment or {})}, **options
        )

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """What a process prints that has to end well."""
        process = self.start(*command, environment=environment)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    def end_processes(self) -> None:
        """All that still runs on this host, and nothing else."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        for pid in map(int, found.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def connected_hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """`count` hosts on one bridge, which lies in a namespace of its own: nothing of this machine's network changes."""
    prefix = f"t{os.getpid()}"
    hub = f"{prefix}hub"
    made: list[str] = []
    try:
        try:
            _ip("netns", "add", hub)
            made.append(hub)
            _ip("-n", hub, "link", "add", "br0", "type", "bridge")
            _ip("-n", hub, "link", "set", "br0", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        hosts = []
        for number in range(1, count + 1):
            host = Host(prefix, number, folder)
            _ip("netns", "add", host.name)
            made.append(host.name)
            _plug_in(hub, host, number)
            hosts.append(host)
        yield hosts
    finally:
        for name in made:
            _ip("netns", "del", name)


def _plug_in(hub: str, host: Host, number: int) -> None:
    _ip("-n", hub, "link", "add", f"port{number}", "type", "veth", "peer", "name", INTERFACE, "netns", host.name)
    _ip("-n", hub, "link", "set", f"port{number}", "master", "br0", "up")
    _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
    for device in ("lo", INTERFACE):
        _ip("-n", host.name, "link", "set", device, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
