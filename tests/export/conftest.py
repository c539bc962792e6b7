import pytest
import tiny


@pytest.fixture(scope="session")
def align(tmp_path_factory):
    """Preprocessing as Hugging Face's: resized to 40, cropped to 32."""
    return tiny.align_folder(tmp_path_factory.mktemp("align"))


@pytest.fixture(scope="session")
def align_tf(tmp_path_factory):
    """Preprocessing as the original program's, which graphs can express."""
    return tiny.align_folder(tmp_path_factory.mktemp("align_tf"), preprocessing="tf")


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    return tiny.vit_folder(tmp_path_factory.mktemp("vit"))
