import pytest
import tiny


@pytest.fixture(scope="session")
def align(tmp_path_factory) -> str:
    return tiny.align_folder(tmp_path_factory.mktemp("align"))


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> str:
    return tiny.vit_folder(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> list[str]:
    return [str(path) for path in tiny.picture_folder(tmp_path_factory.mktemp("photos"), 7)]
