"""Serving the page, for `kakao-models demo`."""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kakao_models.search.index import COLLECTION

from .catalogue import Catalogue
from .models import Models

_log = logging.getLogger(__name__)


def serve(
    names: Iterable[str],
    *,
    index: str | None = None,
    token: str | None = None,
    collection: str = COLLECTION,
    roots: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    ready: Callable[[str], None] = lambda url: None,
    **options: Any,
) -> None:
    """Serves the page until it is interrupted. Uploads, and an index of its own, are in a folder that goes with it.

    Args:
        names: models to choose from.
        index, token, collection, roots: passed to `Catalogue`.
        port: by default the first free one from 7860.
        ready: is told the address when the page can be opened.
        options: passed to `Models`: `vit`, `others`, `device`, `framework`, `engine`, `dtype`.

    Raises:
        ImportError: gradio or pymilvus is missing.
        OSError: the port is taken; there is no such index.
        ValueError: no index of images.
    """
    models = Models(names, **options)
    # An exception, so that what is temporary is removed.
    usual = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with tempfile.TemporaryDirectory(prefix="kakao-models-demo-") as folder:
            catalogue = Catalogue(models, Path(folder), index, roots=roots, token=token, collection=collection)
            os.environ["GRADIO_TEMP_DIR"] = folder  # read when gradio is imported
            page = _app().build(models, catalogue)
            try:
                url = _launch(page, host, port)
                ready(url)
                threading.Thread(target=_warm_up, args=(catalogue,), daemon=True).start()
                while True:
                    time.sleep(3600)  # an interrupt ends it
            finally:
                page.close(verbose=False)
                catalogue.close()
    finally:
        signal.signal(signal.SIGTERM, usual)


def _launch(page, host: str, port: int | None) -> str:
    for last in (False, False, True):
        try:
            return page.launch(
                server_name=host, server_port=port, quiet=True, prevent_thread_lock=True, **_app().LAUNCH
            )[1]
        except OSError as error:
            raise OSError(
                f"{host}, port {port or '7860 to 7959'}: the port is taken, or this computer does not have that address. "
                "Choose another --port or --host"
            ) from error
        except ValueError as error:
            # gradio asks itself for the page, not for long, and would have a public link instead
            page.close(verbose=False)
            if last:
                raise OSError(
                    f"{host}: this computer can't reach its own page. Behind an HTTP proxy, set NO_PROXY=localhost,{host}; "
                    "on a very busy computer, try again"
                ) from error


def _app():
    try:
        from kakao_models.demo import app
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ImportError("The web page needs gradio: pip install 'kakao-models[demo]'") from error
    return app


def _warm_up(catalogue) -> None:
    """Loads the first model and the index while the visitor reads the page."""
    try:
        catalogue.open()
    except Exception as error:  # whoever uses them is told
        _log.debug("warming up: %s", error)
