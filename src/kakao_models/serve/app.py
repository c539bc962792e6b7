"""The routes."""

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from kakao_models import __version__
from kakao_models.serve.guard import TIMEOUT, Guard
from kakao_models.serve.metrics import Metrics
from kakao_models.serve.page import documentation
from kakao_models.serve.schemas import ClassifyRequest, CohereRequest, EmbeddingsRequest, Refused, TEIRequest, parsed
from kakao_models.serve.service import Service

_reader = ThreadPoolExecutor(1, thread_name_prefix="kakao-models-reads")
_CLOSING = 5.0  # seconds for the last batch, once the time for answers is over
_LARGE = 100_000  # bytes of JSON; more is read and written in a thread, so that other requests go on


@dataclass
class State:
    """ready: the model runs and new requests are welcome; closing: the service is about to end; stuck: it has ended, but for
    a batch that did not end in time."""

    ready: bool = False
    closing: bool = False
    stuck: bool = False


def create_app(make_service: Callable[[], Service], *, metrics: Metrics, state: State, **limits: Any) -> FastAPI:
    """The service as an ASGI application.

    Args:
        make_service: gives the `Service`; called when the application starts.
        metrics, state: objects of this application only.
        limits: further arguments of `Guard`: `api_key`, `max_body`, `max_held`, `body_timeout`, `timeout`.
    """
    timeout = limits.get("timeout", TIMEOUT)
    service: Service
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal service
        service = make_service()
        metrics.waiting.set_function(lambda: service.batcher.waiting)
        await service.warm_up()
        state.ready = True
        try:
            yield
        finally:
            state.ready = False
            state.stuck = not await asyncio.to_thread(service.batcher.close, _CLOSING)

    # FastAPI's own pages would load scripts from elsewhere
    app = FastAPI(title="kakao-models", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.post("/v1/embeddings", openapi_extra=_body(EmbeddingsRequest))
    async def embeddings(request: Request) -> Response:
        """Embeddings of texts and images, as OpenAI's endpoint of this name answers."""
        asked = await _parsed(EmbeddingsRequest, request)
        rows, tokens = await embedded(asked)
        encode = _ENCODERS[asked.encoding]
        return await _answer(lambda: {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": encode(row)} for index, row in enumerate(rows)
            ],
            "model": service.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }, rows.size)  # fmt: skip

    async def embedded(asked: EmbeddingsRequest) -> tuple[np.ndarray, int]:
        rows, tokens = await service.embed(asked)
        metrics.tokens.inc(tokens)
        return rows, tokens

    @app.post("/embed", openapi_extra=_body(TEIRequest))
    @app.post("/", openapi_extra=_body(TEIRequest))
    async def embed(request: Request) -> Response:
        """A list of embeddings, as Text Embeddings Inference and `InferenceClient.feature_extraction` know it."""
        rows, _ = await embedded((await _parsed(TEIRequest, request)).as_embeddings())
        return await _answer(rows.tolist, rows.size)

    @app.post("/v2/embed", openapi_extra=_body(CohereRequest))
    async def cohere(request: Request) -> Response:
        """Embeddings, as Cohere's endpoint of this name answers."""
        asked = await _parsed(CohereRequest, request)
        rows, tokens = await embedded(asked.as_embeddings())
        return await _answer(lambda: {
            "id": uuid.uuid4().hex,
            "embeddings": {
                kind: [_ENCODERS[kind](row) for row in rows] for kind in asked.embedding_types or ["float"]
            },
            "texts": asked.texts or [],
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}},
        }, rows.size)  # fmt: skip

    @app.post("/v1/classify", openapi_extra=_body(ClassifyRequest))
    async def classify(request: Request) -> Response:
        """Scores of labels for images: the labels of the request, or the model's own."""
        asked = await _parsed(ClassifyRequest, request)
        scores, problems = await service.classify(asked)
        return await _answer(lambda: {
            "object": "list",
            "data": [{"object": "classification", "index": index, "scores": row} for index, row in enumerate(scores)],
            "model": service.name,
            **({"warnings": problems} if problems else {}),
        }, sum(map(len, scores)))  # fmt: skip

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [_about()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise Refused(
                404, f"this service does not serve the model {name[:100]!r}", param="model", code="model_not_found"
            )
        return _about()

    def _about() -> dict[str, Any]:
        embedder = service.embedder
        inputs = ["text", "image"] if service.reads_texts else ["image"]
        return {
            "id": service.name, "object": "model", "created": started, "owned_by": "kakaobrain",
            "inputs": inputs, "dimensions": embedder.dim,
            "max_tokens": embedder.max_tokens if service.reads_texts else None, "classifies": service.classifies,
            "calibrated": service.relevance is not None,
        }  # fmt: skip

    @app.get("/docs", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """Documentation page: the model that is served, and its endpoints."""
        return HTMLResponse(documentation(app.openapi(), _about(), str(request.base_url).rstrip("/")))

    @app.get("/health")
    async def health() -> Response:
        """200 while the process can answer, and its model thread lives and is not stuck in a batch."""
        seconds = service.batcher.running
        stuck = f"a batch has run for {seconds:.0f} s" if seconds > timeout else None
        wrong = stuck if service.batcher.alive else "the model thread ended"
        return JSONResponse({"status": wrong or "ok"}, 500 if wrong else 200)

    @app.get("/ready")
    async def ready() -> Response:
        """200 while new requests are welcome; 503 before that, and once the service is ending."""
        welcome = state.ready and not state.closing
        return JSONResponse({"status": "ready" if welcome else "closing"}, 200 if welcome else 503)

    @app.get("/metrics")
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        refused = Refused(error.status_code, str(error.detail))
        return JSONResponse(refused.body(), error.status_code, headers=error.headers)

    app.add_middleware(Guard, metrics=metrics, closing=lambda: state.closing, **limits)
    return app


async def _parsed(kind: type[BaseModel], request: Request) -> Any:
    body = await request.body()
    if len(body) <= _LARGE:
        return parsed(kind, body)
    # One at a time: a body of short values takes twenty times its size while it is read.
    return await asyncio.get_running_loop().run_in_executor(_reader, parsed, kind, body)


async def _answer(make, numbers: int) -> Response:
    def written() -> bytes:
        return to_json(make())

    body = await asyncio.to_thread(written) if numbers * 20 > _LARGE else written()
    return Response(body, media_type="application/json")


def _in_base64(row: np.ndarray) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


_ENCODERS: dict[str, Callable[[np.ndarray], Any]] = {"float": np.ndarray.tolist, "base64": _in_base64}


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """The body's schema for /openapi.json: it is parsed here, not by FastAPI, whose errors have another form."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(kind)}}}}


def _inlined(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return resolved(definitions[part["$ref"].rpartition("/")[2]])
            return {key: resolved(value) for key, value in part.items()}
        return [resolved(value) for value in part] if isinstance(part, list) else part

    return resolved(schema)
