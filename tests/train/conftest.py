import pytest


@pytest.fixture
def one_thread():
    """As in the other processes of a run: another number of threads adds up in another order."""
    import torch  # other tests of this folder run without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
