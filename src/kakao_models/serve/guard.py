"""Checks before every route: the size of bodies, their time, the key; and errors in one form."""

import asyncio
import hmac
import logging
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from kakao_models.serve.batching import Busy
from kakao_models.serve.metrics import Metrics
from kakao_models.serve.schemas import Refused

_log = logging.getLogger("kakao_models.serve")
OPEN = ("/health", "/ready")  # without a key
TIMEOUT = 120.0  # seconds for an answer
_COPIES = 3  # memory of a request in bodies: the bytes, the strings that JSON makes of them, and the files in those
_MOST_REST = 2**28  # bytes of a body that is too long, which are read and dropped


class Guard:
    """ASGI middleware. A body is read here, within its limits, and the route gets it whole.

    Args:
        closing: whether connections are to be closed after the answer, because the service ends.
        api_key: what "Authorization: Bearer" must hold; None for no key.
        max_body: bytes; body_timeout: seconds to send them in; timeout: seconds for the answer.
        max_held: bytes that all bodies and what is read from them take at the same time, `_COPIES` of each body; by default 1 GiB,
            or what four of the largest take.
        max_requests: requests at the same time; `OPEN` are always answered.
    """

    def __init__(
        self,
        app: Callable,
        *,
        metrics: Metrics,
        closing: Callable[[], bool],
        api_key: str | None = None,
        max_body: int = 32 * 2**20,
        max_held: int | None = None,
        body_timeout: float = 30.0,
        timeout: float = TIMEOUT,
        max_requests: int = 2048,
    ):
        self.app, self.metrics, self.closing = app, metrics, closing
        self.key = None if api_key is None else api_key.strip().encode()  # a header's value has no blanks around it
        self.max_body, self.body_timeout, self.timeout = max_body, body_timeout, timeout
        self.running, self.max_requests = 0, max_requests
        self.held, self.max_held = 0, (max_held or max(2**30, 4 * _COPIES * max_body)) // _COPIES  # bytes of bodies

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start = time.perf_counter()
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = scope | {"path": scope["path"].rstrip("/") or "/"}

        def count(status: int) -> None:
            route = scope.get("route")
            endpoint = getattr(route, "path", None) or "other"  # not what a stranger asked for: labels must be few
            self.metrics.requests.labels(endpoint, str(status)).inc()
            self.metrics.seconds.labels(endpoint).observe(time.perf_counter() - start)

        answer = _Answer(send, self.closing, count, self._release)
        self.running += 1
        try:
            if self.running > self.max_requests and scope["path"] not in OPEN:
                raise Busy(f"the limit of {self.max_requests} concurrent requests is reached", 1)
            return await self._handle(scope, receive, answer)
        except _Gone:
            if not answer.status:
                count(499)  # as nginx counts clients that left
            return
        # Responses, not errors: kept in a variable, an error would keep this frame and so the body until the garbage is collected
        except Refused as error:
            response = _error_response(error)
        except Busy as error:
            status = 503 if error.draining else 429
            response = _error_response(Refused(status, str(error), code="overloaded", retry=error.seconds))
        except Exception:
            _log.exception("%s %r failed", scope["method"], scope["path"])
            response = _error_response(Refused(500, "the service failed; its log says why", code="internal_error"))
        finally:
            self.running -= 1
        if not answer.status:  # otherwise the answer has begun
            await response(scope, receive, answer)

    async def _handle(self, scope: dict, receive: Callable, answer: "_Answer") -> None:
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"] not in OPEN:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.key):
                raise Refused(
                    401,
                    "the API key is missing or wrong: send the header Authorization: Bearer KEY",
                    code="invalid_api_key",
                )
        if scope["method"] != "POST":
            return await self._run(scope, receive, answer, b"")
        body = await self._body(headers, receive)
        answer.held = len(body)
        try:
            if not headers.get(b"content-type", b"").lower().startswith(b"application/json"):
                raise Refused(415, "the body must be JSON, with Content-Type: application/json")
            await self._run(scope, receive, answer, body)
        finally:
            self._release(answer)

    def _release(self, answer: "_Answer") -> None:
        self.held -= answer.held
        answer.held = 0

    async def _run(self, scope: dict, receive: Callable, answer: "_Answer", body: bytes) -> None:
        """Runs the route, unless the client leaves or the time is over before it has answered."""
        left = asyncio.ensure_future(_disconnected(receive))
        work = asyncio.ensure_future(self.app(scope, _once(body, left), answer))
        try:
            done, _ = await asyncio.wait({left, work}, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                return work.result()
            if left in done:
                raise _Gone
            raise Refused(504, f"no result within {self.timeout:g} s", code="timeout", retry=1)
        finally:
            for task in (left, work):
                task.cancel()
            await asyncio.gather(left, work, return_exceptions=True)
            done = left = work = task = None  # a task holds its error, which holds this frame

    async def _body(self, headers: dict, receive: Callable) -> bytes:
        """The body, unpacked, which counts in `held` as it comes."""
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b"gzip", b"x-gzip"):
            raise Refused(415, "Content-Encoding: expected gzip or none")
        packed = None if encoding == b"identity" else zlib.decompressobj(wbits=31)
        if b"transfer-encoding" in headers and b"content-length" in headers:  # a proxy may read it otherwise
            raise Refused(400, "got both Content-Length and Transfer-Encoding, expected one of them")
        announced = headers.get(b"content-length", b"0")
        too_long = announced.isdigit() and int(announced) > self.max_body
        body, rest = bytearray(), 0
        try:
            async with asyncio.timeout(self.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    piece = message.get("body", b"")
                    more = message.get("more_body")
                    if too_long:
                        rest += len(piece)
                    else:
                        if packed is not None:
                            piece = packed.decompress(piece, self.max_body + 1)
                            if packed.unused_data:  # it would grow with all that follows
                                raise zlib.error("expected one member, more data follows it")
                        if self.held + len(piece) > self.max_held:
                            raise Busy("the bodies of other requests fill the memory for bodies", 1)
                        self.held += len(piece)
                        body += piece
                        if too_long := len(body) > self.max_body:
                            self.held -= len(body)
                            body.clear()
                    if too_long:  # read to its end: a client that still sends would not read the answer
                        if rest > _MOST_REST or not more:
                            raise self._too_long()
                    elif not more:
                        if packed is not None and not packed.eof:
                            raise zlib.error("it ends too early")
                        return bytes(body)
        except zlib.error as error:
            self.held -= len(body)
            raise Refused(400, f"the body is not valid gzip ({error})") from None
        except BaseException as error:
            self.held -= len(body)
            if isinstance(error, TimeoutError) and too_long:
                raise self._too_long() from None
            if isinstance(error, TimeoutError):
                raise Refused(408, f"the body did not arrive within {self.body_timeout:g} s") from None
            raise

    def _too_long(self) -> Refused:
        return Refused(413, f"the body is longer than {self.max_body} bytes", code="body_too_large")


class _Gone(Exception):
    """The client left."""


async def _disconnected(receive: Callable) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _once(body: bytes, left: asyncio.Future) -> Callable[[], Awaitable[dict[str, Any]]]:
    """A `receive` that gives the body, and after it waits for the client to leave."""
    received = False

    async def receive() -> dict[str, Any]:
        nonlocal received
        if received:
            await asyncio.shield(left)
            return {"type": "http.disconnect"}
        received = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


class _Answer:
    """A `send` that tells the status to `count`, and calls `release` before the client can have the whole answer."""

    def __init__(
        self,
        send: Callable,
        closing: Callable[[], bool],
        count: Callable[[int], None],
        release: Callable[["_Answer"], None],
    ):
        self._send, self._closing, self._count, self._release = send, closing, count, release
        self.status = 0
        self.held = 0  # bytes of the request's body that count in `Guard.held`

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        starts = message["type"] == "http.response.start"
        if starts:
            self.status = message["status"]
            self._count(self.status)  # before the client can ask for the figures
            if self._closing():
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await self._send(message)  # waits while the client leaves earlier answers unread: its body still counts
        if starts:
            self._release(self)  # before the client can send its next body


def _error_response(error: Refused) -> JSONResponse:
    headers = {"retry-after": str(error.retry)} if error.retry else {}
    if error.status in (408, 413):  # what is left of the body is not read
        headers["connection"] = "close"
    return JSONResponse(error.body(), error.status, headers)
