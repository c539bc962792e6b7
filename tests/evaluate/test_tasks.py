from types import SimpleNamespace

import numpy as np
import pytest

from kakao_models.evaluate import Captioned, Labelled, tasks, zero_shot_scores
from kakao_models.evaluate.datasets import Images
from kakao_models.evaluate.similarity import Ratings


class Planted:
    """Embeddings that are known, in place of a model's."""

    fingerprint = data_fingerprint = "0"
    embedder = SimpleNamespace(name="planted")

    def __init__(self, images, texts=None):
        self._images, self._texts = images, texts

    def images(self, sources, *, name=""):
        return self._images[list(sources)]

    def texts(self, texts):
        return self._texts


def test_right_answers_are_cocos_own_and_those_rated_enough_both_ways():
    ids = [f"{i}.jpg" for i in range(4)]
    data = Captioned("cxc", Images(range(4)), ids, list("abcd"), ids, [0, 1, 2, 3])
    mark = [f"COCO_val2014:sentid:{i}" for i in range(4)]
    texts = np.eye(4)[[1, 0, 2, 3]]  # captions 0 and 1 lie at each other's image
    scores = np.array([3.0, 2.99, 0.0, 1.0])
    rated = {
        "sis": Ratings("sis", ids, ids[1:] + ids[:1], scores, [""] * 4),
        "sts": Ratings("sts", mark, mark[2:] + mark[:2], scores, [""] * 4),
        "sits": Ratings("sits", mark, ids[1:] + ids[:1], scores, [""] * 4),
    }
    run = tasks.TaskRun(Planted(np.eye(4), texts))
    found = tasks.similarity(run, data, rated, samples=5)
    assert found.settings["positive"] == 3  # as the paper
    assert found.counts["image_to_image_queries"] == 2 and found.counts["text_to_text_queries"] == 2
    assert found.metrics["text_to_image_r1"] == 0.75  # caption 0 by its rating with image 1; caption 1 is wrong
    assert found.metrics["image_to_text_r1"] == 0.75  # image 1 likewise
    assert "image_to_image_r1" not in tasks.similarity(run, data, rated, samples=5, positive=3.5).metrics


def test_captions_of_one_image_are_right_answers_to_each_other_both_ways():
    ids = ["0.jpg", "1.jpg"]
    owner = [ids[0], ids[0], ids[1], ids[1]]
    data = Captioned("cxc", Images(range(2)), ids, list("abcd"), owner, [0, 1, 2, 3])
    texts = np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
    found = tasks.similarity(tasks.TaskRun(Planted(np.eye(2), texts)), data, {})
    assert found.counts["text_to_text_queries"] == 4 and found.metrics["text_to_text_r1"] == 1


def test_the_drop_is_the_usual_accuracy_less_the_shifted_ones_mean(monkeypatch):
    rows = np.eye(4)
    right = {"usual": [0, 1, 2, 3], "v2": [0, 1, 3, 2], "r": [1, 0, 3, 3]}

    def planted(run, data, names, templates):
        return None, zero_shot_scores(rows, rows, np.array(right[data.name]), temperature=1.0)

    monkeypatch.setattr(tasks, "zero_shot", planted)
    sets = [(Labelled(name, Images(range(4)), np.arange(4), list("abcd"), None), list("abcd")) for name in right]
    found = tasks.robustness(tasks.TaskRun(Planted(rows)), sets, ("{}",)).metrics
    assert (found["usual_top1"], found["v2_top1"], found["r_top1"]) == (1, 0.5, 0.25)
    assert found["shifted_mean_top1"] == 0.375 and found["drop"] == 0.625


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_every_class_has_one_name(names):
    data = Labelled("data", Images(range(2)), np.arange(2), ["a", "b"], None)
    with pytest.raises(ValueError, match=f"data: got {len(names)} class names for 2 classes"):
        tasks.zero_shot(tasks.TaskRun(Planted(np.eye(2))), data, names, ["{}"])


def test_classes_of_two_tables_are_matched_by_name_not_by_number():
    rows = np.eye(3)
    train = Labelled("train", Images(range(3)), np.arange(3), ["a", "b", "c"], None)
    test = Labelled("test", Images(range(3)), np.array([1, -1, 0]), ["c", "a"], None)  # rows 0 and 2: a and c
    found = tasks.knn(tasks.TaskRun(Planted(rows)), train.take(range(3)), test)
    assert found.metrics["top1"] == 1 and found.counts == {"train": 3, "test": 2}
    with pytest.raises(ValueError, match="has classes that train does not have: z"):
        tasks.knn(tasks.TaskRun(Planted(rows)), train, Labelled("test", Images(range(1)), np.array([0]), ["z"], None))


def test_folds_count_what_they_measure(caplog):
    ids = list(range(7))
    owner = [i for i in ids for _ in "ab"]
    data = Captioned("coco", Images(range(7)), ids, list(map(str, owner)), owner, list(range(14)))

    class Both(Planted):
        def texts(self, texts):
            return np.eye(7)[[int(text) for text in texts]]

    found = tasks.retrieval(tasks.TaskRun(Both(np.eye(7))), data, fold_size=3)
    assert found.counts == {"images": 6, "captions": 12, "folds": 2, "images_left_out": 1}
    assert "6 of 7 images are measured, in 2 folds of 3; the last 1 are left out" in caplog.text
    with pytest.raises(ValueError, match="got 7 images, expected at least one fold of 8"):
        tasks.retrieval(tasks.TaskRun(Both(np.eye(7))), data, fold_size=8)


def test_equal_names_of_a_models_classes_count_as_the_first_and_keep_their_own_rows(caplog):
    names = ["crane", "tench", "crane"]
    config = SimpleNamespace(id2label=dict(enumerate(names)), num_labels=3)
    model = SimpleNamespace(name="planted", config=config, check_classifier=lambda: None)

    class Classifier(Planted):
        embedder = model

        def class_logits(self, sources, *, name=""):
            return np.eye(3, dtype=np.float32)[list(sources)]

    run = tasks.TaskRun(Classifier(np.eye(3)))
    found, _ = tasks.classify(run, Labelled("val", Images(range(2)), np.arange(2), ["crane", "tench"], None))
    assert found.metrics["top1"] == 1 and "several classes called 'crane' (0, 2)" in caplog.text
    found, _ = tasks.classify(
        run, Labelled("val", Images([0, 1, 0]), np.arange(3), names, None)
    )  # the model's own list
    assert found.details["per_class"] == {"crane (0)": 1, "tench": 1, "crane (2)": 0}
