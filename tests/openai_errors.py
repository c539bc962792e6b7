"""Errors as OpenAI's API has them."""

import re

import httpx


def check_error(answer: httpx.Response, status: int, message: str) -> dict:
    """The error object of an answer that must have this status, and a message that matches."""
    assert answer.status_code == status, (answer.status_code, answer.text[:300])
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert re.search(message, error["message"]), error["message"]
    assert len(error["message"]) < 600
    return error
