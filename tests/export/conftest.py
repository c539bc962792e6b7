import pytest
import tiny


@pytest.fixture(scope="session")
def align_tf(tmp_path_factory):
    """Preprocessing as the original program's, which graphs can express."""
    return tiny.align_folder(tmp_path_factory.mktemp("align_tf"), preprocessing="tf")
