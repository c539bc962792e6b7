"""What the page's server gives to whoever asks it without a browser, and what it refuses."""

import json
from pathlib import Path

import hostile
import httpx
import pages
import pytest

from kakao_models.demo.photos import BUNDLED


@pytest.fixture(scope="module")
def api(server):
    with httpx.Client(base_url=server.rstrip("/"), timeout=120, trust_env=False) as client:
        yield client


def call(api, name: str, data: list) -> str:
    """What an endpoint of the page answers, as its stream of events."""
    answer = api.post(f"/gradio_api/call/{name}", json={"data": data})
    answer.raise_for_status()
    return api.get(f"/gradio_api/call/{name}/{answer.json()['event_id']}").text


def photo(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        str(Path(__file__)),
        f"{BUNDLED}/../cli.py",
        f"{BUNDLED}/%2e%2e/cli.py",
        f"{BUNDLED}/..%2fcli.py",
        "../../../../../../etc/passwd",
        "file:///etc/passwd",
        "/proc/self/environ",
    ],
)
def test_no_file_of_the_computer_is_served(api, path):
    answer = api.get(f"/gradio_api/file={path}")
    assert answer.status_code in (403, 404) and "root:" not in answer.text


def test_the_bundled_photographs_are_served(api):
    assert api.get(f"/gradio_api/file={BUNDLED}/cat.jpg").headers["content-type"] == "image/jpeg"


def test_the_call_of_the_documentation_gives_a_table(server, monkeypatch):
    monkeypatch.chdir(BUNDLED)
    here = {"http://127.0.0.1:7860": server, "page.predict(": "answer = page.predict("}
    answer = pages.run(pages.block("demo.md", "gradio_client"), "demo.md", {}, here)["answer"]
    assert "km-bars" in answer and "a cat" in answer


@pytest.mark.parametrize("path", ["/etc/hostname", str(Path(__file__)), "photos/../../cli.py"])
def test_an_upload_that_is_none_is_refused(api, path):
    answer = call(api, "zero_shot", [photo(path), "a cat\na dog", "", "align-small", ""])
    assert "event: error" in answer and "km-bars" not in answer


def test_no_address_is_fetched(api):
    with hostile.hostile_server() as elsewhere:
        for address in (f"{elsewhere.url}/good/1", f"{elsewhere.url}/endless"):
            answer = call(api, "zero_shot", [photo(address), "a cat\na dog", "", "align-small", ""])
            assert "event: error" in answer and "Send the image itself" in answer
        assert not elsewhere.requests


def test_numbers_beyond_the_sliders_are_refused(api):
    answer = call(api, "search", ["mountains", 2, None, 1, "", -1, 100_000, 0.5])
    assert "event: error" in answer


def test_what_is_written_into_the_page_is_escaped(api):
    answer = call(api, "search", ["<img src=x onerror=alert(1)> " * 100, 2, None, 1, "", -1, 3, 0.5])
    assert "event: complete" in answer, answer
    found = json.loads(answer.rpartition("data: ")[2])[0]
    assert "km-strip" in found and "<img src=x" not in found and "&lt;img src=x" in found


def test_uploads_are_bounded(api):
    answer = api.post("/gradio_api/upload", files={"files": ("big.png", bytes(21 * 2**20))})
    assert answer.status_code == 413
    assert api.post("/gradio_api/upload", files={"files": ("small.png", bytes(2**20))}).status_code == 200
