import shutil

import numpy as np
import pytest
import tiny
from tolerances import TOLERANCE

from kakao_models import Embedder
from kakao_models.evaluate import CachedEmbedder, retrieval_scores


@pytest.fixture
def photos(tmp_path):
    return tiny.picture_folder(tmp_path / "photos", 7)


class Counting:
    """Counts what an embedder is asked for."""

    def __init__(self, embedder, monkeypatch):
        self.images, self.texts = 0, 0
        images, texts = embedder.images, embedder.texts

        def count_images(sources, **options):
            self.images += len(sources)
            return images(sources, **options)

        def count_texts(some, **options):
            self.texts += len(some)
            return texts(some, **options)

        monkeypatch.setattr(embedder, "images", count_images)
        monkeypatch.setattr(embedder, "texts", count_texts)


def test_nothing_is_computed_twice_and_what_is_read_is_what_was_written(align, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("kakao_models.evaluate.cache._PER_FILE", 3)
    first = CachedEmbedder(Embedder(align), tmp_path / "cache")
    rows, texts = first.images(photos), first.texts(["a cat", "a dog"])
    again = CachedEmbedder(Embedder(align), tmp_path / "cache")
    counted = Counting(again.embedder, monkeypatch)
    assert np.array_equal(again.images(photos), rows) and np.array_equal(again.texts(["a cat", "a dog"]), texts)
    assert (counted.images, counted.texts) == (0, 0)
    assert again.fingerprint == first.fingerprint and again.data_fingerprint == first.data_fingerprint
    assert np.abs(rows - Embedder(align).images(photos)).max() < TOLERANCE["batching"]
    moved = [path.read_bytes() for path in photos[:3]] + [tiny.picture(99), *photos[4:]]  # content counts, not names
    again.images(moved)
    assert counted.images == 3  # of the part with the new picture


def test_the_same_bytes_in_another_shape_are_another_picture(align, tmp_path):
    cached = CachedEmbedder(Embedder(align), tmp_path / "cache")
    wide = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    rows = [cached.images([picture])[0] for picture in (wide, wide.reshape(40, 20, 3))]
    assert not np.allclose(*rows)


def test_whatever_may_change_an_embedding_changes_the_fingerprint(align, tmp_path):
    def fingerprint(**options) -> str:
        return CachedEmbedder(Embedder(align, **options)).fingerprint

    found = [fingerprint(), fingerprint(dtype="bfloat16"), fingerprint(image_options={"max_pixels": 10**6})]
    found.append(fingerprint(fast_images=True))
    other = Embedder(align)
    other.config.text_config.layer_norm_eps *= 2
    found.append(CachedEmbedder(other).fingerprint)
    other = Embedder(align)
    other.image_processor.do_center_crop = not other.image_processor.do_center_crop
    found.append(CachedEmbedder(other).fingerprint)
    assert len(set(found)) == len(found) and fingerprint() == found[0]


def test_an_interrupted_run_goes_on_where_it_stopped(align, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("kakao_models.evaluate.cache._PER_FILE", 2)
    cached = CachedEmbedder(Embedder(align), tmp_path / "cache")
    broken = [*photos[:4], b"no picture", *photos[4:]]
    with pytest.raises(ValueError, match="holiday: image 4 can't be read"):
        cached.images(broken, name="holiday")
    counted = Counting(cached.embedder, monkeypatch)
    cached.images(photos)
    assert counted.images == 3


def test_another_model_or_preprocessing_has_its_own_embeddings(align, photos, tmp_path):
    seen = {CachedEmbedder(Embedder(align)).fingerprint}
    for change in (dict(seed=1), dict(size=44), dict(preprocessing="tf")):
        folder = tiny.align_folder(tmp_path / f"other{len(seen)}", **change)
        seen.add(CachedEmbedder(Embedder(folder)).fingerprint)
    seen.add(CachedEmbedder(Embedder(align, dtype="bfloat16")).fingerprint)
    assert len(seen) == 5
    used = Embedder(align)
    used.texts(["a cat"])  # tokenizers remember the last call's padding
    assert CachedEmbedder(used).fingerprint == CachedEmbedder(Embedder(align)).fingerprint


def test_embeddings_of_another_model_in_the_place_of_these_are_refused(align, photos, tmp_path):
    mine, other = (CachedEmbedder(Embedder(folder), tmp_path / "cache") for folder in
                   (align, tiny.align_folder(tmp_path / "other", seed=1)))  # fmt: skip
    mine.images(photos)
    other.images(photos)
    paths = [next((tmp_path / "cache" / f"features-{each.fingerprint[:24]}").iterdir()) for each in (mine, other)]
    shutil.copy(paths[1], paths[0])
    with pytest.raises(ValueError, match="holds embeddings of another model: got those of .*other"):
        mine.images(photos)
    paths[0].write_bytes(b"cut off")
    with pytest.raises(ValueError, match="can't be read .* delete it"):
        mine.images(photos)


def test_logits_and_features_are_kept_apart(vit, photos, tmp_path):
    cached = CachedEmbedder(Embedder(vit), tmp_path / "cache")
    assert cached.class_logits(photos).shape == (7, 7) and cached.images(photos).shape == (7, 32)
    assert np.array_equal(
        cached.class_logits(photos), CachedEmbedder(Embedder(vit), tmp_path / "cache").class_logits(photos)
    )
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_missing_file_is_named(align, tmp_path):
    with pytest.raises(ValueError, match="gone.png can't be read"):
        CachedEmbedder(Embedder(align)).images([tmp_path / "gone.png"])


@pytest.mark.parametrize("framework", ["tf", "flax"])
def test_every_framework_gives_the_same_scores_and_keeps_embeddings_of_its_own(align, photos, tmp_path, framework):
    pytest.importorskip({"tf": "tensorflow", "flax": "flax"}[framework])
    one = CachedEmbedder(Embedder(align, framework="torch"), tmp_path / "cache")
    other = CachedEmbedder(Embedder(align, framework=framework), tmp_path / "cache")
    assert one.fingerprint != other.fingerprint
    assert CachedEmbedder(Embedder(align, framework=framework)).fingerprint == other.fingerprint
    captions = ["a cat", "the sea", "a big tree", "red", "a house", "in the car", "dog"]
    found = [
        retrieval_scores(each.images(photos), each.texts(captions), range(7), range(7)).metrics()
        for each in (one, other)
    ]
    assert found[0] == found[1] and len(list((tmp_path / "cache").iterdir())) == 4


def test_values_that_changed_on_disk_are_not_taken(align, photos, tmp_path):
    cached = CachedEmbedder(Embedder(align), tmp_path / "cache")
    rows = cached.images(photos)
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # one bit of the last embedding: still a file that can be read
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        cached.images(photos)
    path.unlink()
    assert np.array_equal(cached.images(photos), rows)


def test_what_a_killed_process_left_is_neither_read_nor_in_the_way(align, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("kakao_models.evaluate.cache._PER_FILE", 3)
    cached = CachedEmbedder(Embedder(align), tmp_path / "cache")
    rows = cached.images(photos)
    path = next((tmp_path / "cache").rglob("*.safetensors"))
    path.with_name(f".{path.name}.1.tmp").write_bytes(path.read_bytes()[:40])
    path.unlink()
    counted = Counting(cached.embedder, monkeypatch)
    assert np.array_equal(cached.images(photos), rows) and counted.images in (1, 3) and path.exists()
