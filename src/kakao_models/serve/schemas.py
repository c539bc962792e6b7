"""Schemas of requests, and errors in OpenAI's form."""

import base64
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

_MOST_VALUES = 100_000  # of a body, in all its lists and objects

# A data: URL of any type or none; in a text a blank follows "data:", or no comma comes before the first blank
_DATA_URL = re.compile(r"\s*data:(?:[^,\s]*|[\w.+/=;\s-]*;\s*base64\s*),", re.IGNORECASE)
_ADDRESS = re.compile(r"\s*https?://\S+\s*", re.IGNORECASE)
# How the files of JPEG, PNG, GIF, WEBP and TIFF begin in base64; nothing else in a text has so many characters without a blank
_BASE64_IMAGE = re.compile(r"\s*(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK)[A-Za-z0-9+/_\r\n-]{40,}={0,2}\s*")
STRINGS = ("refuse", "images", "texts")


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

    An image is a data: URL, the file in base64, or an http(s) URL where the service fetches them. `image_url` may be the URL itself.
    """

    type: Literal["text", "image", "image_url"] | None = None
    text: str | None = None
    image: str | None = None
    image_url: ImageURL | str | None = None


_AtFirst = Field(fail_fast=True)  # of a million wrong entries one error is enough
Input = str | ContentPart
RequestItems = Annotated[list[Input], _AtFirst]
Texts = Annotated[list[str], _AtFirst]
Tokens = Annotated[list[int], _AtFirst]
RequestInputs = Annotated[
    str | ContentPart | RequestItems | Tokens | Annotated[list[Tokens], _AtFirst],
    Field(description="A text, an image, or a list of them. A string that is a data: URL is an image."),
]


class EmbeddingsRequest(_Strict):
    input: RequestInputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = Field(None, description="float, by default, or base64.")
    dimensions: int | None = None
    normalize: bool | None = Field(None, description="Embeddings of length 1, as by default.")
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
        if place == "input" and first["type"] != "missing":
            detail = _wrong_input(from_json(body)["input"]) or detail
        raise Refused(400, detail[:500], param=place) from None


def _wrong_input(value: Any) -> str | None:
    """A message about the first input that is neither a text nor an image; None if there is none."""
    for index, part in enumerate(as_list(value)):
        place = f"input[{index}]" if isinstance(value, list) else "input"
        if isinstance(part, dict):
            for name, inner in part.items():
                if name not in ContentPart.model_fields:
                    return f"{place}: unknown field {name[:50]!r}; expected one of text, image and image_url"
                url = inner.get("url") if name == "image_url" and isinstance(inner, dict) else inner
                if url is not None and not isinstance(url, str):
                    return f"{place}.{name}: expected a string, got {_kind(url)}"
        elif not isinstance(part, str):
            return f"{place}: expected a text or an image, got {_kind(part)}"
    return None


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else "a string")


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


def image_source(part: str | ContentPart, place: str, strings: str = "refuse") -> str | None:
    """Returns the image of an input (a data: URL, base64 or an address), or None if the input is a text.

    Args:
        strings: one of `STRINGS`: whether bare strings that look like an image (an http(s) address, or a picture in base64)
            are refused, or taken for images or texts.

    Raises:
        Refused: neither, or both; or such a string.
    """
    if isinstance(part, str):
        if _DATA_URL.match(part):
            return part.strip()
        if strings == "texts" or not (_ADDRESS.fullmatch(part) or _BASE64_IMAGE.fullmatch(part)):
            return None
        if strings == "images":
            return part.strip()
        kind = "an address" if _ADDRESS.fullmatch(part) else "an image in base64"
        raise Refused(
            400,
            f'{place}: this string looks like {kind}. Send {{"image": ...}} for an image, {{"text": ...}} for a text; the '
            "service's option --strings decides otherwise",
            param="input",
        )
    url = part.image_url.url if isinstance(part.image_url, ImageURL) else part.image_url
    if [part.text, part.image, url].count(None) != 2:
        raise Refused(400, f"{place}: expected one of text, image and image_url", param="input")
    return part.image if url is None else url


def decoded(source: str, place: str) -> bytes:
    """The bytes of a data: URL or of base64.

    Raises:
        Refused: it is neither.
    """
    data = source.strip()
    if data[:5].lower() == "data:":
        head, comma, data = data.partition(",")
        if not comma or not "".join(head.split()).lower().endswith(";base64"):
            raise Refused(400, f"{place}: expected data:image/...;base64,...", param="input")
    try:
        return base64.b64decode("".join(data.split()), validate=True)  # `base64` wraps its lines
    except ValueError as error:
        raise Refused(400, f"{place}: an image must be base64 or a data: URL ({error})", param="input") from None
