"""Which network interface workers talk over: the one their cluster is reached by, not what the host's name resolves to.

gloo takes the address of the host's own name, which on Debian is 127.0.1.1, where no other host connects.
"""

import os
import socket
from ipaddress import ip_address

import psutil

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def use_interface(address: str) -> str:
    """Have gloo and NCCL of this process use the interface that holds `address`, unless the user has chosen others.

    Returns what to call this end of a connection: the address and what is used for it. Before torch.distributed starts.
    """
    name = interface_holding(address)
    if name is not None:
        os.environ.setdefault(GLOO, name)
        os.environ.setdefault(NCCL, f"={name}")  # without "=", NCCL takes it for the beginning of a name
    return f"{address} by {os.environ.get(GLOO, 'the address of its name')}"


def interface_holding(address: str) -> str | None:
    """The interface that has this address (IPv4 or IPv6); None if none has it, as behind address translation."""
    wanted = ip_address(address)
    for name, addresses in psutil.net_if_addrs().items():
        for found in addresses:
            numeric = found.address.partition("%")[0]
            if found.family in (socket.AF_INET, socket.AF_INET6) and ip_address(numeric) == wanted:
                return name
    # The whole of 127.0.0.0/8 is the loopback interface's; it lists one address of it.
    return interface_holding("127.0.0.1") if wanted.is_loopback and address != "127.0.0.1" else None


def address_towards(host: str) -> str:
    """This host's address on the way to `host`, a name or an address. Sends nothing. Raises OSError if none."""
    family, kind, _, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)
        return probe.getsockname()[0]


def outer_address(host: str) -> str:
    """As `address_towards`, for a group over several hosts: never loopback where this host has one other address.

    On the host that `host` names, its name leads to loopback, where the others do not reach it.
    """
    address = address_towards(host)
    if not ip_address(address).is_loopback:
        return address
    others = {
        found.address
        for found_on in psutil.net_if_addrs().values()
        for found in found_on
        if found.family == socket.AF_INET and not ip_address(found.address).is_loopback
    }
    if len(others) != 1:
        raise OSError(
            f"MASTER_ADDR {host} leads to {address} on its own host, and {len(others)} other addresses are there "
            f"{sorted(others)}: give the address that the other hosts reach, or set {GLOO} and {NCCL}"
        )
    return others.pop()


def cannot_connect(ends: list[str], error: BaseException) -> str:
    """One line on workers that did not find each other."""
    reason = " ".join(str(error).split())
    return (
        f"the workers could not connect to each other ({', '.join(ends)}): {reason[-300:]}; let the hosts reach each "
        f"other on all ports, or set {GLOO} and {NCCL} on each host to the interface they share"
    )
