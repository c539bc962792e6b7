"""The page at / and /docs: the model, the addresses with their fields, and commands to try."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "pre{background:#f4f4f4;padding:.75rem;overflow-x:auto}code{font-size:.9em}"
    "table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.2rem 1rem .2rem 0}"
)


def documentation(schema: Mapping[str, Any], model: Mapping[str, Any], url: str) -> str:
    """An HTML page that loads nothing from elsewhere.

    Args:
        schema: the service's OpenAPI schema.
        model: the model's entry of /v1/models.
        url: the address of the service, as the client wrote it.
    """
    text = "text" in model["inputs"]
    example = '{"input": ["a cat", "a dog"]}' if text else '{"input": "data:image/jpeg;base64,..."}'
    name = escape(model["id"])
    about = f"It reads {' and '.join(kind + 's' for kind in model['inputs'])} and gives {model['dimensions']} numbers for each."
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{name} - kakao-models</title><style>{_STYLE}</style>",
        f"<h1>{name}</h1><p>{escape(about)} The machine-readable description of this service is at ",
        f"<a href='/openapi.json'>/openapi.json</a>; its version is {escape(schema['info']['version'])}.</p>",
        f"<pre>curl {escape(url)}/v1/embeddings -H 'Content-Type: application/json' \\\n  -d '{escape(example)}'</pre>",
        f'<pre>from openai import OpenAI\n\nclient = OpenAI(base_url="{escape(url)}/v1", api_key="none")\n',
        f'client.embeddings.create(model="{name}", input=["..."]).data[0].embedding</pre>',
    ]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description', operation['summary']))}</p>")
            parts += _fields(operation)
    return "".join(parts)


def _fields(operation: Mapping[str, Any]) -> Iterator[str]:
    """A table of the body's fields."""
    if "requestBody" not in operation:
        return
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    yield "<table><tr><th>field</th><th></th></tr>"
    for field, value in schema["properties"].items():
        needed = "required" if field in schema.get("required", ()) else ""
        words = ". ".join(filter(None, (needed, value.get("description", "").rstrip("."))))
        yield f"<tr><td><code>{escape(field)}</code></td><td>{escape(words)}</td></tr>"
    yield "</table>"
