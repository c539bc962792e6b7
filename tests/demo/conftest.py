"""One server and one browser for all tests of the page; the server runs in this process."""

import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def models(vit):
    from kakao_models.demo.models import Models

    return Models(["align-small"], vit)


@pytest.fixture(scope="session")
def catalogue(models, tmp_path_factory):
    pytest.importorskip("pymilvus", reason="search needs pymilvus: pip install 'kakao-models[search]'")
    from kakao_models.demo.catalogue import Catalogue

    catalogue = Catalogue(models, tmp_path_factory.mktemp("index"))
    yield catalogue
    catalogue.close()


@pytest.fixture(scope="session")
def server(models, catalogue, tmp_path_factory):
    """Address of the page, with align-small, a tiny ViT and the index of the photographs inside the package."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'kakao-models[demo]'")
    from kakao_models.demo.app import LAUNCH, build

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = build(models, catalogue)
        _, url, _ = page.launch(quiet=True, prevent_thread_lock=True, **LAUNCH)
        yield url
        page.close(verbose=False)


@pytest.fixture(scope="module")  # an event loop runs in this thread as long as it is there
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser test without playwright")
    if CHROMIUM is None:
        pytest.skip("no browser test without chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(server, browser):
    """A function that opens the page in a window of its own; at the end nothing may have been asked of other hosts."""

    @contextmanager
    def open_page(width: int = 1200, height: int = 900, **context):
        window = browser.new_context(viewport={"width": width, "height": height}, **context)
        window.set_default_timeout(90_000)  # a test is never about time
        asked, errors = [], []
        page = window.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server)
        page.get_by_role("button", name="Classify").wait_for()
        yield page
        window.close()
        assert {url.split("/")[2] for url in asked if url.startswith("http")} == {server.split("/")[2]}
        assert not errors

    return open_page
