import contextlib
import ctypes
import gc
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

# What tests compile runs once or twice: XLA's optimizations cost more than they give. Same functions, same tolerances.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")  # TensorFlow's own gives no memory back
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: more threads than one would spin and wait
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(name, "1")

# Its import sets up logging, which closes the handlers that are there: later, absl's would close what pytest captures.
with contextlib.suppress(ImportError):
    import pymilvus  # noqa: F401

import goldens  # noqa: E402
import tiny  # noqa: E402

LIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
# Parameters of mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4

held = 0  # bytes after memory was last given back


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """What a file of tests compiled and allocated goes with it, or earlier where it is much: it would be gigabytes."""
    global held
    if nextitem is not None and nextitem.path == item.path and resident() - held < 512 << 20:
        return
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    gc.freeze()  # the frameworks' millions of objects, which each collection would look at again
    if LIBC:
        LIBC.mallopt(M_TRIM_THRESHOLD, 128 << 10)  # as they are by default: a trainer changes both
        LIBC.mallopt(M_MMAP_MAX, 65536)
        LIBC.malloc_trim(0)
    held = resident()


def resident() -> int:
    """Bytes of memory of this process, 0 where that is not known."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.is_file() else 0


@pytest.fixture
def little_memory():
    """Arrays of more than 4 MB are given back when they are freed: slower, but a test of gigabytes needs fewer of them."""
    if LIBC:
        LIBC.mallopt(M_MMAP_THRESHOLD, 4 << 20)
    yield
    if LIBC:
        LIBC.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # where glibc's own adaptation ends


@pytest.fixture(scope="session")
def torch():
    """PyTorch, for tests that compare with it in files that run without it too."""
    return pytest.importorskip("torch", reason="compared with PyTorch")


@pytest.fixture(scope="session")
def align(tmp_path_factory) -> str:
    """A small ALIGN, whose preprocessing is Hugging Face's: resized to 40, cropped to 32. Not to be changed."""
    return tiny.align_folder(tmp_path_factory.mktemp("align"))


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> str:
    """A small ViT of seven classes. Not to be changed."""
    return tiny.vit_folder(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine, which huggingface_hub and transformers take for the Hub in this process. There are no token, an
    empty cache, and no waiting between attempts."""
    import hub_server
    from huggingface_hub import constants, file_download

    with hub_server.HubServer() as server:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
        yield server


@pytest.fixture
def command(capsys):
    """Runs `kakao-models` in this process: exit code, stdout, stderr."""
    from kakao_models.cli import main

    def run(*arguments) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory):
    """name of a recorded run → folder with its configuration and weights."""
    folders = {}

    def make(name: str) -> Path:
        if name not in folders:
            folders[name] = goldens.write_folder(name, tmp_path_factory.mktemp(name))
        return folders[name]

    yield make
    for folder in folders.values():  # gigabytes, which pytest would keep
        shutil.rmtree(folder)
