"""A Hub on this machine, whose checkpoints and cache are a test's own."""

import hub_server
import pytest
from huggingface_hub import constants, file_download


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """What huggingface_hub and transformers take for the Hub in this process. No token, an empty cache, no waiting."""
    with hub_server.HubServer() as server:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
        yield server
