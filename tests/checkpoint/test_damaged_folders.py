"""A few mutations of model folders; tests/fuzz/fuzz_folders.py tries more, with every reader."""

from fuzz.fuzz_folders import fuzz

READERS = (
    *("align", "align processor", "align embedder", "info align"),
    *("vit", "vit processor", "vit embedder", "info vit"),
)


def test_fuzz(tmp_path):
    results = fuzz(200, seed=1_000_000, folder=tmp_path, readers=READERS)
    assert {outcome for _, outcome in results} == {"read", "refused"}
    assert sum(results.values()) == 200
