"""Schemas of requests, and errors in OpenAI's form."""

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

_MOST_VALUES = 100_000  # of a body, in all its lists and objects


class Refused(Exception):
    """An answer that is an error: `status`, and the fields of OpenAI's error object."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int = 0):
        super().__init__(message)
        self.status, self.param, self.code, self.retry = status, param, code, retry

    def body(self) -> dict[str, Any]:
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, usual)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class ImageURL(BaseModel):
    """OpenAI's form of an image within a message."""

    model_config = ConfigDict(strict=True)
    url: str


class ContentPart(_Strict):
    """{"text": ...}, {"image": ...}, or {"type": "image_url", "image_url": {"url": ...}}.

    An image is a data: URL, the file in base64, or an http(s) URL where the service fetches them.
    """

    type: Literal["text", "image", "image_url"] | None = None
    text: str | None = None
    image: str | None = None
    image_url: ImageURL | None = None


_AtFirst = Field(fail_fast=True)  # of a million wrong entries one error is enough
Input = str | ContentPart
RequestItems = Annotated[list[Input], _AtFirst]
Texts = Annotated[list[str], _AtFirst]
Tokens = Annotated[list[int], _AtFirst]
RequestInputs = Annotated[
    str | ContentPart | RequestItems | Tokens | Annotated[list[Tokens], _AtFirst],
    Field(description="A text, an image, or a list of them. A string that begins with data:image/ is an image."),
]


class EmbeddingsRequest(_Strict):
    input: RequestInputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    normalize: bool = Field(True, description="Embeddings of length 1.")
    user: str | None = None


class ClassifyRequest(_Strict):
    input: Annotated[str | ContentPart | RequestItems, Field(description="An image, or a list of them.")]
    labels: Texts | None = Field(None, description="What to choose from; a ViT with a classifier has its own.")
    templates: str | Texts | None = Field(None, description="The sentence made of a label: {} is the label.")
    model: str | None = None
    top_k: int | None = Field(None, ge=1)
    user: str | None = None


def parsed(kind: type[BaseModel], body: bytes) -> Any:
    """A request's JSON.

    Raises:
        Refused: what is wrong with it, without repeating it.
    """
    _check_count(body)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # Of a union every branch complains; the field is what a caller can use.
        place = str(first["loc"][0]) if first["loc"] else None
        detail = f"{place}: {first['msg']}" if place else f"the body: {first['msg']}"
        raise Refused(400, detail[:500], param=place) from None


def _check_count(body: bytes) -> None:
    """pydantic makes an object of every field, and of every wrong one an error: 900 bytes of memory of one of a body."""
    try:
        waiting = [from_json(body)]
    except ValueError:  # whose words are not as good as those that follow
        return
    count = 0
    while waiting:
        part = waiting.pop()
        if isinstance(part, (list, dict)):
            count += len(part)
            if count > _MOST_VALUES:
                raise Refused(
                    400, f"the body holds more than {_MOST_VALUES:,} values. Are these token ids? Send strings"
                )
            waiting.extend(part if isinstance(part, list) else part.values())


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def image_source(part: str | ContentPart, place: str) -> str | None:
    """The image of an input, None where it is a text.

    Raises:
        Refused: neither, or both.
    """
    if isinstance(part, str):
        return part if part[:11].lower() == "data:image/" else None
    url = part.image_url.url if part.image_url else None
    if [part.text, part.image, url].count(None) != 2:
        raise Refused(400, f"{place}: expected one of text, image and image_url", param="input")
    return part.image if url is None else url


def decoded(source: str, place: str) -> bytes:
    """The bytes of a data: URL or of base64.

    Raises:
        Refused: it is neither.
    """
    data = source
    if source[:5].lower() == "data:":
        head, comma, data = source.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Refused(400, f"{place}: expected data:image/...;base64,...", param="input")
    try:
        return base64.b64decode("".join(data.split()), validate=True)  # `base64` wraps its lines
    except ValueError as error:
        raise Refused(400, f"{place}: an image must be base64 or a data: URL ({error})", param="input") from None
