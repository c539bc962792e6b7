"""Running the service until a signal ends it, with every accepted request answered."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from kakao_models.checkpoint.hub import called
from kakao_models.serve.app import State, create_app
from kakao_models.serve.connections import Connection, stop_accepting
from kakao_models.serve.metrics import Metrics
from kakao_models.serve.service import Limits, Service
from kakao_models.verbs import ModelOptions

try:
    import resource
except ImportError:  # Windows
    resource = None


class Server(uvicorn.Server):
    """uvicorn's, which on the first signal says for `drain` seconds that it is ending before it does.

    Meanwhile /ready answers 503 and every answer closes its connection, so that load balancers and clients go elsewhere;
    whatever still comes is answered. After that no connection is accepted, and those that wait get their answers.
    """

    def __init__(self, config: uvicorn.Config, state: State, drain: float, ready: Callable[[str], None]):
        super().__init__(config)
        self.signal: int | None = None
        self._state, self._drain, self._ready = state, drain, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listening in sockets or ():
            await stop_accepting(listening)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own, which raises the signal again at the end: what ends in order ends with 0.
        self.signal = sig
        if self._state.closing:
            self.should_exit, self.force_exit = True, self.should_exit
            return
        self._state.closing = True
        asyncio.get_running_loop().call_later(self._drain, setattr, self, "should_exit", True)


def serve(
    options: ModelOptions,
    *,
    name: str | None,
    host: str,
    port: int,
    limits: Limits,
    max_wait: float,
    max_queue: int,
    max_body: int,
    timeout: float,
    drain: float,
    api_key: str | None,
    ready: Callable[[str], None],
    calibration: Path | None = None,
) -> int | None:
    """Serves a model until SIGINT or SIGTERM; a second signal ends the drain time, a third one everything.

    Returns:
        The signal that ended it.

    Args:
        options: the model; its batch size is also that of the `Batcher`.
        name: what clients call it; by default as `options` names it, of a folder its name.
        max_wait: seconds that an input waits for others; max_queue: inputs, not requests, that may wait.
        max_body: bytes of a request; timeout: seconds for an answer; api_key: see `Guard`.
        drain: seconds between the signal and the end of listening.
        ready: is told the address when requests are taken.
        calibration: a file instead of the model's own; see `Embedder`.

    Raises:
        OSError: the address can't be listened on, or the model can't be read.
        ValueError: of `Embedder`, also for a calibration of another model.
    """
    listening = _bound(host, port)
    _allow_files()
    embedder = options.open(calibration=calibration)
    if calibration is not None:
        embedder.relevance  # noqa: B018  an error ends the command here
    metrics, state = Metrics(), State()

    def make_service() -> Service:
        batching = dict(batch_size=options.batch_size, max_wait=max_wait, max_items=max_queue, watch=metrics.batch)
        return Service(embedder, name or called(options.model), limits, **batching)

    app = create_app(
        make_service,
        metrics=metrics,
        state=state,
        api_key=api_key,
        max_body=max_body,
        timeout=timeout,
    )
    config = uvicorn.Config(
        app, host=host, port=port, http=Connection, access_log=False, server_header=False,
        timeout_graceful_shutdown=int(timeout) + 5, timeout_keep_alive=30,
        lifespan="on",
    )  # fmt: skip
    server = Server(config, state, drain, ready)
    server.run(sockets=[listening])
    if not server.started:
        raise OSError("the service did not start; its log says why")
    if state.stuck:  # its threads would be waited for at the end of the process
        print(
            "kakao-models: a batch did not finish in time; the service stopped without answering it",
            file=sys.stderr,
            flush=True,
        )
        os._exit(130 if server.signal == signal.SIGINT else 1)
    return server.signal


def _allow_files() -> None:
    """Raises the limit of open files, and so of connections, to the most that the system allows this process."""
    if resource is not None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the address; so a taken one is known before the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1)  # or another service could bind it too, until one of them listens
    except OSError as error:
        raise OSError(
            f"{host}:{port} cannot listen on this address: {error.strerror or error}. Choose another --port"
        ) from error
    return bound
