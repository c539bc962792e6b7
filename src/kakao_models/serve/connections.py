"""Connections that carry no request: how long they stay, how many there are, and how they end with the service."""

import asyncio
import select
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

WAIT = 30.0  # seconds for the headers of a request, on a new connection or after an answer
LINGER = 1.0  # seconds that a new connection has to send its request once the service ends
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
        if self.is_idle and not self.transport.is_closing() and (left > 0 or self._has_bytes()):
            self.loop.call_later(max(left, 0.05), self.shutdown)
        else:
            super().shutdown()

    def _has_bytes(self) -> bool:
        """Whether something has come that has not been read."""
        if not hasattr(select, "poll"):  # Windows
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))


async def stop_accepting(listening: socket.socket) -> None:
    """Lets no further connections wait at a socket, and has those that do accepted."""
    listening.listen(0)
    for _ in range(3):
        await asyncio.sleep(0.005)  # the loop accepts all that wait
