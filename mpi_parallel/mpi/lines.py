"""Lines of text between rank 0 and every other rank beside MPI: TCP, for threads, while main threads are stuck in MPI.

A line lives as long as its process: the kernel closes it when that is killed, and the other end hears of it at once.
Whoever connects has to know a token that only the ranks know, and what comes is text, never code.
"""

from __future__ import annotations

import fcntl
import platform
import secrets
import selectors
import socket
import struct
from contextlib import suppress

from mpi_parallel.mpi.communicator import Communicator

GET_ADDRESS = 0x8915  # SIOCGIFADDR, netdevice(7)
DIALLING = 5.0  # seconds for one address to answer
LONGEST = 1 << 16  # bytes of a line: more is not one of ours


class Line:
    """One end of a line. `send` never waits: what the other end does not take is dropped with the line."""

    def __init__(self, end: socket.socket) -> None:
        self.socket, self._rest = end, b""
        end.setblocking(False)

    def send(self, text: str) -> None:
        """A line of text; errors show when reading."""
        with suppress(OSError):
            self.socket.send(text.encode() + b"\n")

    def read(self) -> list[str] | None:
        """The whole lines that have come; None when the line is broken."""
        try:
            data = self.socket.recv(LONGEST)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > LONGEST:
            return None
        return [line.decode(errors="replace") for line in lines]


class Lines:
    """This rank's lines: rank 0 has one to every other rank that has connected, the others have one to rank 0.

    Made by all ranks together; used, afterwards, by one thread of each, without MPI.
    """

    def __init__(self, world: Communicator) -> None:
        self.rank = world.rank
        self.host = platform.node()
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._server: socket.socket | None = None
        self.open: dict[int, Line] = {}
        told = ""
        if self.rank == 0:
            self._server = socket.create_server(("", 0), backlog=min(4096, 16 + world.size))
            self._server.setblocking(False)
            self._selector.register(self._server, selectors.EVENT_READ)
            told = " ".join([secrets.token_hex(16), str(self._server.getsockname()[1]), self.host, *_addresses()])
        self._token, self._port, self._hub, *self._hosts = world.gather_text(told)[0].split()

    def dial(self) -> bool:
        """Connect to rank 0; whether that worked."""
        near = ["127.0.0.1"] if self.host == self._hub else []
        for address in [*near, self._hub, *self._hosts]:
            with suppress(OSError):
                end = socket.create_connection((address, int(self._port)), DIALLING)
                self._add(0, Line(end))
                self.open[0].send(f"{self._token} {self.rank}")
                return True
        return False

    def poll(self, seconds: float) -> list[tuple[int, str | None]]:
        """What has come, waiting for it at most so long: (rank, a line), or None when that rank's line broke."""
        heard: list[tuple[int, str | None]] = []
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._server:
                self._accept()
            elif key.fileobj is self._ear:
                self._ear.recv(64)
            else:
                heard += self._hear(key.data)
        return heard

    def send(self, text: str) -> None:
        """To the other end of every line."""
        for line in self.open.values():
            line.send(text)

    def ring(self) -> None:
        """Let a `poll` of another thread return."""
        with suppress(OSError):  # it may have been hung up just now
            self._bell.send(b".")

    def close(self) -> None:
        """Hang up."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._bell.close()

    def _add(self, rank: int | None, line: Line) -> None:
        line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(line.socket, selectors.EVENT_READ, [rank, line])
        if rank is not None:
            self.open[rank] = line

    def _accept(self) -> None:
        assert self._server is not None
        with suppress(OSError):
            self._add(None, Line(self._server.accept()[0]))

    def _hear(self, end: list[object]) -> list[tuple[int, str | None]]:
        rank, line = end
        assert isinstance(line, Line)
        lines = line.read()
        if rank is None and lines:  # the first line has to say who is there
            token, _, number = lines.pop(0).partition(" ")
            if secrets.compare_digest(token, self._token) and number.isdigit():
                end[0] = rank = int(number)
                self.open[rank] = line
            else:
                lines = None
        if lines is None:
            self._selector.unregister(line.socket)
            line.socket.close()
        if not isinstance(rank, int):
            return []
        if lines is None:
            self.open.pop(rank, None)
            return [(rank, None)]
        return [(rank, text) for text in lines]


def _addresses() -> list[str]:
    """The IPv4 addresses of this host, its own loop left out."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(any_socket, GET_ADDRESS, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in found if not address.startswith("127.")]
