"""Connections that carry no request: how long they stay, how many there are, and how they end with the service."""

import asyncio
import contextlib
import ctypes
import select
import socket
import struct
import sys
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

WAIT = 30.0  # seconds for the headers of a request, on a new connection or after an answer
LINGER = 1.0  # seconds that a new connection has to send its request once the service ends
_SO_ATTACH_FILTER = 26  # socket(7) of Linux
MOST = 2048  # connections; beyond it, those that have waited longest for a request are closed


class Connection(H11Protocol):
    """A connection of uvicorn's that is closed when it has waited too long for a request, and is not closed at the end of the
    service while a request may have arrived."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        self._check = self.loop.call_later(WAIT, self._check_wait)
        if len(self.connections) > MOST:
            waiting = [c for c in self.connections if isinstance(c, Connection) and c.is_idle and c is not self]
            if waiting:
                min(waiting, key=lambda other: other._since).transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._check.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    @property
    def is_idle(self) -> bool:
        """Whether no request has begun, or its headers are not complete."""
        return self.cycle is None or self.cycle.response_complete

    def _check_wait(self) -> None:
        left = self._since + WAIT - self.loop.time()
        if self.is_idle and left <= 0:
            self.transport.close()
        else:
            self._check = self.loop.call_later(left if self.is_idle else WAIT, self._check_wait)

    def shutdown(self) -> None:
        left = self._since + LINGER - self.loop.time()
        connection = self.transport.get_extra_info("socket")
        if self.is_idle and not self.transport.is_closing() and (left > 0 or _is_readable(connection)):
            self.loop.call_later(max(left, 0.05), self.shutdown)
        else:
            super().shutdown()


def _is_readable(connection: socket.socket) -> bool:
    """Whether something has arrived: bytes, or a connection that waits to be accepted."""
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([connection], [], [], 0)[0])
    poll = select.poll()  # select takes no descriptors above 1023
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def stop_accepting(listening: socket.socket) -> None:
    """Lets no further connections come to a socket, and has those that wait at it accepted."""
    listening.listen(0)
    loop, quiet = asyncio.get_running_loop(), 0
    end = loop.time() + LINGER
    while quiet < 3 and loop.time() < end:  # those that are being made
        await asyncio.sleep(0.005 if quiet else 0)
        quiet = 0 if _is_readable(listening) else quiet + 1
    _drop_packets(listening)
    while _is_readable(listening) and loop.time() < end + LINGER:
        await asyncio.sleep(0)  # uvloop accepts one connection in a turn of the loop, asyncio all


def _drop_packets(listening: socket.socket) -> None:
    """Drops what comes to a listening socket, so that no connection is made between the last one and its closing (Linux)."""
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0, which keeps no byte
    with contextlib.suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
