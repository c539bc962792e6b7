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


Formats = Literal["float", "base64"]


class Message(_Strict):
    """A message of a chat, of which vLLM's clients make an embedding."""

    role: str
    content: str | Annotated[list[ContentPart], _AtFirst]
    name: str | None = None


class EmbeddingsRequest(_Strict):
    """OpenAI's fields, and those that clients of vLLM (messages), Infinity (modality) and Jina (normalized, embedding_type,
    task, truncate) send to the same address."""

    input: RequestInputs | None = None
    messages: Annotated[list[Message], _AtFirst] | None = Field(
        None, description="One message with a text or an image."
    )
    modality: Literal["text", "image"] | None = Field(None, description="Kind of all strings in `input`.")
    model: str | None = None
    encoding_format: Formats | None = Field(None, description="float, by default, or base64.")
    embedding_type: Formats | Annotated[list[Formats], Field(min_length=1, max_length=1)] | None = Field(
        None, description="Another name of `encoding_format`."
    )
    dimensions: int | None = Field(None, description="The width of the model's embeddings, and no other.")
    normalize: bool | None = Field(None, description="Embeddings of length 1, as by default.")
    normalized: bool | None = Field(None, description="Another name of `normalize`.")
    truncate: bool | None = Field(None, description="False refuses texts that are longer than the model reads.")
    user: str | None = None
    task: str | None = Field(None, description="Ignored: the model's embeddings serve every task.")
    add_special_tokens: bool | None = Field(None, description="Ignored: the model always reads them.")
    continue_final_message: Literal[False] | None = None

    @property
    def encoding(self) -> Formats:
        return as_list(_one_of(self, "encoding_format", "embedding_type") or "float")[0]

    @property
    def unit_length(self) -> bool:
        return _one_of(self, "normalize", "normalized") is not False

    def parts(self) -> "str | ContentPart | list[Input]":
        """Returns the input to embed, from the one field that has it.

        Raises:
            Refused: it came in two of them, or in none; or a message has more than one text or image.
        """
        found = _one_of(self, "input", "messages")
        if found is None:
            raise Refused(400, "input: missing; expected a text, an image, or a list of them", param="input")
        if found is self.messages:
            return _only_part(self.messages)
        return found if self.modality is None else [_as(self.modality, part) for part in as_list(found)]


class TEIRequest(_Strict):
    """A request to /embed of Text Embeddings Inference, which huggingface_hub's `feature_extraction` sends too."""

    inputs: RequestInputs
    normalize: bool | None = Field(None, description="Embeddings of length 1, as by default.")
    truncate: bool | None = Field(None, description="False refuses texts that are longer than the model reads.")
    truncation_direction: Literal["right", "Right"] | None = None
    prompt_name: None = Field(None, description="The model has no prompts.")
    encoding_format: Literal["float"] | None = None
    dimensions: int | None = None

    def as_embeddings(self) -> EmbeddingsRequest:
        return EmbeddingsRequest(
            input=self.inputs, normalize=self.normalize, truncate=self.truncate, dimensions=self.dimensions
        )


class CohereContent(_Strict):
    content: Annotated[list[ContentPart], Field(min_length=1, max_length=1)]


class CohereRequest(_Strict):
    """A request to /v2/embed of Cohere's clients."""

    model: str | None = None
    input_type: str | None = Field(None, description="Ignored: the model's embeddings serve every task.")
    texts: Texts | None = None
    images: Texts | None = Field(None, description="data: URLs.")
    inputs: Annotated[list[CohereContent], _AtFirst] | None = Field(None, description="A text or an image each.")
    embedding_types: Annotated[list[Formats], Field(min_length=1)] | None = None
    truncate: Literal["END", "NONE"] | None = Field(None, description="NONE refuses texts that are too long.")
    output_dimension: int | None = None

    def as_embeddings(self) -> EmbeddingsRequest:
        """
        Raises:
            Refused: not exactly one of texts, images and inputs is there.
        """
        if [self.texts, self.images, self.inputs].count(None) != 2:
            raise Refused(400, "expected one of texts, images and inputs", param="texts")
        if self.inputs is not None:
            parts: list[Input] = [one.content[0] for one in self.inputs]
        else:
            kind = "image" if self.texts is None else "text"
            parts = [_as(kind, text) for text in self.images or self.texts or ()]
        truncate = None if self.truncate is None else self.truncate == "END"
        return EmbeddingsRequest(input=parts, model=self.model, truncate=truncate, dimensions=self.output_dimension)


class ClassifyRequest(_Strict):
    input: Annotated[str | ContentPart | RequestItems, Field(description="An image, or a list of them.")]
    labels: Texts | None = Field(None, description="What to choose from; a ViT with a classifier has its own.")
    templates: str | Texts | None = Field(None, description="The sentence made of a label: {} is the label.")
    model: str | None = None
    top_k: int | None = Field(None, ge=1)
    min_relevance: float | str | None = Field(
        None,
        description="Adds to each label its relevance, the probability that it fits, and leaves out labels below this: a number in "
        '0..1, or "coverage=0.9" or "precision=0.5". Where no label fits, the one entry is "none of these".',
    )
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
        if place in ("input", "inputs") and first["type"] != "missing":
            detail = _wrong_input(from_json(body)[place], place) or detail
        raise Refused(400, detail[:500], param=place) from None


def _wrong_input(value: Any, field: str) -> str | None:
    """A message about the first input that is neither a text nor an image; None if there is none."""
    for index, part in enumerate(as_list(value)):
        place = f"{field}[{index}]" if isinstance(value, list) else field
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
                raise Refused(400, f"the body has more than {_MOST_VALUES:,} values. Are these token ids? Send strings")
            waiting.extend(part if isinstance(part, list) else part.values())


def _one_of(request: BaseModel, *names: str) -> Any:
    """The value of a field that has several names.

    Raises:
        Refused: it has two.
    """
    values = {name: value for name in names if (value := getattr(request, name)) is not None}
    if len(values) > 1:
        raise Refused(400, f"got {' and '.join(values)}, expected only one of them", param=names[0])
    return next(iter(values.values()), None)


def _only_part(messages: list[Message]) -> str | ContentPart:
    if len(messages) != 1 or messages[0].role != "user":
        roles = ", ".join(message.role[:20] for message in messages[:5]) or "none"
        raise Refused(400, f"messages: expected one message of the role user, got {roles}", param="messages")
    content = messages[0].content
    if isinstance(content, str):
        return content
    if len(content) != 1:
        raise Refused(
            400,
            f"messages[0].content: expected one text or one image, got {len(content)} parts; the model embeds one at a time",
            param="messages",
        )
    return content[0]


def _as(kind: str, part: Any) -> Any:
    """A string as a text or an image, whatever it looks like."""
    return ContentPart(**{kind: part}) if isinstance(part, str) else part


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
