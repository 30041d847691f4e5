"""Several hosts on this one machine: network namespaces, each with a name of its own and a link that can be cut.

They share files, memory and cores, but no network beside the switch between them: what passes from rank to rank of
different hosts are messages over TCP. Needs root, and Linux's `ip`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

# In place of ssh: [OPTIONS] HOST COMMAND...
AGENT = """\
#!/bin/sh
while [ "${1#-}" != "$1" ]; do case $1 in -[lpoiF]) shift 2 ;; *) shift ;; esac; done
host=$1; shift
exec unshare --uts ip netns exec "$host" sh -c 'hostname "$0"; exec sh -c "$*"' "$host" "$@"
"""


class Hosts:
    """Hosts that are there, and how mpirun is told of them."""

    def __init__(self, names: list[str], agent: Path) -> None:
        self.names, self.agent = names, agent
        # mpirun itself runs on the first of them.
        name = ["sh", "-c", 'hostname "$0"; exec "$@"', names[0]]
        self.within = ["unshare", "--uts", "ip", "netns", "exec", names[0], *name]

    def options(self, mpi: str, ranks: int) -> list[str]:
        """Those of this MPI's mpirun for so many ranks on each host."""
        slots = ",".join(f"{name}:{ranks}" for name in self.names)
        if mpi == "mpich":
            return ["-hosts", slots, "-launcher", "ssh", "-launcher-exec", str(self.agent), "-iface", "eth0"]
        return ["--host", slots, "--map-by", f"ppr:{ranks}:node"]

    @property
    def env(self) -> dict[str, str]:
        """What both MPIs are told by their environment; Open MPI 5 and 4 have different names for the agent."""
        agent = {"PRTE_MCA_plm_ssh_agent": str(self.agent), "OMPI_MCA_plm_rsh_agent": str(self.agent)}
        return agent | {"OMPI_MCA_btl_tcp_if_include": "eth0", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"}

    def cut(self, number: int) -> None:
        """Nothing reaches this host any more, nor leaves it."""
        _ip("link", "set", _plug(number), "down")

    def mend(self, number: int) -> None:
        """As before the cut."""
        _ip("link", "set", _plug(number), "up")


@contextlib.contextmanager
def hosts(count: int, folder: Path) -> Iterator[Hosts]:
    """So many hosts for as long as the context lasts; raises OSError where none can be made."""
    agent = folder / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    _sweep()
    names = [f"host{number}-{os.getpid()}" for number in range(count)]
    switch = f"mpsw{os.getpid()}"
    try:
        _ip("link", "add", switch, "type", "bridge")
        _ip("link", "set", switch, "up")
        for number, name in enumerate(names):
            _ip("netns", "add", name)
            _ip("link", "add", _plug(number), "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", _plug(number), "master", switch, "up")
            _ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield Hosts(names, agent)
    finally:
        for number, name in enumerate(names):
            for away in (("link", "del", _plug(number)), ("netns", "del", name)):
                with contextlib.suppress(OSError):  # it was not there yet
                    _ip(*away)
        with contextlib.suppress(OSError):
            _ip("link", "del", switch)


def _sweep() -> None:
    """Remove what a program that was killed has left: the names end with its number."""
    for kind, name in [*(("netns", path.name) for path in Path("/run/netns").glob("host*-*")),
                       *(("link", path.name) for path in Path("/sys/class/net").glob("mpsw*"))]:  # fmt: skip
        if not Path("/proc", name.replace("mpsw", "-").rpartition("-")[2]).exists():
            with contextlib.suppress(OSError):  # somebody else does, too
                _ip(kind, "del", name)


def _plug(number: int) -> str:
    """The end of the host's link that is in the switch; such names have at most 15 letters."""
    return f"mp{number}-{os.getpid()}"


def _ip(*arguments: str) -> None:
    """Raises OSError with what `ip` says."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where it is need not be on PATH
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, env={**os.environ, "PATH": path})
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
