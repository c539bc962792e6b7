import pytest
import tiny


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> list[str]:
    return [str(path) for path in tiny.picture_folder(tmp_path_factory.mktemp("photos"), 7)]
