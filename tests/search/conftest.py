import shutil

import pytest
import tiny

from kakao_models import Embedder
from kakao_models.search import SearchIndex


@pytest.fixture(scope="session")
def model(align):
    return align


@pytest.fixture(scope="session")
def embedder(model):
    return Embedder(model, batch_size=4, num_workers=2)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Ten pictures, of which 003 is broken, 006 the same file as 001, and 000 has a caption."""
    folder = tmp_path_factory.mktemp("search-photos")
    paths = tiny.picture_folder(folder, 10)
    paths[3].write_bytes(b"no picture")
    shutil.copy(paths[1], paths[6])
    (folder / "000.txt").write_text("a red dog\nsecond line\n")
    return folder


@pytest.fixture(scope="session")
def built(embedder, photos, tmp_path_factory):
    """A database of `photos`; copy it before you change it."""
    path = tmp_path_factory.mktemp("search-built") / "photos.db"
    with SearchIndex.open(path, embedder, create=True) as index:
        index.build(photos)
    return path


@pytest.fixture
def copied(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copied.db")
