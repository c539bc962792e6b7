import json

import numpy as np
import pytest
from golden import inputs
from goldens import FOLDER
from sklearn import metrics

from kakao_models.evaluate import classification_scores, multilabel_scores, real_scores


def recorded(classes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    seed = json.loads((FOLDER / "golden_metrics_vit.json").read_text())["seed"]
    three = inputs.integers("metrics/labels", seed, (count, 3), 0, classes)
    noise = np.float32(inputs.integers("metrics/logits", seed, (count, classes), -4000, 4001) / 1000)
    return three, noise


def test_metrics_of_the_original_program():
    for case in json.loads((FOLDER / "golden_metrics_vit.json").read_text())["cases"]:
        three, noise = recorded(case["classes"], case["count"])
        hot = np.zeros(noise.shape, np.float32)
        several = case["name"] == "multi_label"
        np.put_along_axis(hot, three if several else three[:, :1], 1, axis=1)
        logits = noise + 2 * hot
        if several:
            found = multilabel_scores(logits, hot).metrics()
            for name, value in case["values"].items():
                if name != "auc":  # Keras' approximation by 200 thresholds
                    assert found[name] == pytest.approx(value, abs=2e-6), name
        else:
            found = classification_scores(logits, three[:, 0]).metrics()
            assert found["top1"] == pytest.approx(case["values"]["top1_acc"])
            assert found["top5"] == pytest.approx(case["values"]["top5_acc"])


def test_top_k_per_class_and_confusion_are_scikit_learns():
    draw = np.random.default_rng(0)
    for _ in range(300):
        classes, count = draw.integers(1, 9), draw.integers(1, 40)
        logits = draw.integers(-3, 4, (count, classes)).astype(np.float32)  # full of ties
        labels = draw.integers(-1, classes, count)
        labels[0] = 0
        found = classification_scores(logits, labels, at=(1, 2, 5))
        known = labels >= 0
        order = np.argsort(-logits, axis=1, kind="stable")
        assert found.top[2] == np.mean([label in row[:2] for label, row in zip(labels[known], order[known])])
        assert found.top[1] == metrics.accuracy_score(labels[known], order[known, 0])
        every = list(range(classes))
        matrix = metrics.confusion_matrix(labels[known], order[known, 0], labels=every)
        assert np.array_equal(found.confusion(), matrix)
        seen = np.unique(labels[known])
        recall = metrics.recall_score(labels[known], order[known, 0], labels=seen, average="macro", zero_division=0)
        assert found.mean_per_class == pytest.approx(recall)
        wrong = matrix - np.diag(np.diag(matrix))
        assert sum(number for *_, number in found.most_confused(1000)) == wrong.sum()
        assert all(wrong[a, b] == number for a, b, number in found.most_confused(1000))


def test_many_classes_take_the_quick_way_to_the_same_answer():
    draw = np.random.default_rng(1)
    logits = draw.standard_normal((500, 300)).astype(np.float32).round(1)  # with ties, a few in a row
    order = np.argsort(-logits, axis=1, kind="stable")
    labels = order[np.arange(500), draw.integers(0, 8, 500)]
    found = classification_scores(logits, labels, at=(1, 2, 5))
    assert np.array_equal(found.predictions, order[:, 0])
    for k, share in found.top.items():
        assert share == (order[:, :k] == labels[:, None]).any(1).mean()


def test_a_part_of_the_models_classes():
    logits = np.array([[9.0, 1, 2, 3], [9, 5, 2, 3]], np.float32)
    found = classification_scores(logits, np.array([1, 0]), at=(1,), columns=[1, 3])
    assert found.predictions.tolist() == [1, 0] and found.top[1] == 1 and found.classes == 2


def test_real_labels():
    logits = np.eye(4, 10, dtype=np.float32)
    logits[3, 4:9] = np.arange(1, 6) / 10  # its best five: 3, 8, 7, 6, 5
    found = real_scores(logits, [[0, 5], [], [9], [5, 9]])
    assert found == {"real_top1": pytest.approx(1 / 3), "real_top5": pytest.approx(2 / 3), "real_images": 3}
    with pytest.raises(ValueError, match="row 1 has the class 10"):
        real_scores(logits, [[0], [10], [], []])
    with pytest.raises(ValueError, match="no image has a label"):
        real_scores(logits, [[]] * 4)


def test_average_precision_and_f1_are_scikit_learns():
    draw = np.random.default_rng(2)
    for _ in range(150):
        count, classes = draw.integers(1, 40), draw.integers(1, 7)
        logits = draw.integers(-3, 4, (count, classes)).astype(np.float32)
        truth = draw.random((count, classes)) < 0.3
        truth[0, 0] = True
        found = multilabel_scores(logits, truth)
        known = np.flatnonzero(truth.any(0))
        each = {int(c): metrics.average_precision_score(truth[:, c], logits[:, c]) for c in known}
        assert found.per_class == pytest.approx(each)
        assert found.micro_average_precision == pytest.approx(
            metrics.average_precision_score(truth.ravel(), logits.ravel())
        )
        for average in ("macro", "micro"):
            theirs = metrics.f1_score(truth, logits > 0, average=average, zero_division=0, labels=range(classes))
            if classes > 1:
                assert vars(found)[f"{average}_f1_score"] == pytest.approx(theirs)
        lists = [np.flatnonzero(row).tolist() for row in truth]
        assert multilabel_scores(logits, lists).metrics() == found.metrics()


@pytest.mark.parametrize(
    "logits, labels, message",
    [
        ([[0.0, 1.0], [np.nan, 0.0]], [0, 1], "logits: row 1 is not finite"),
        ([[0.0, 1.0]], [2], "row 0 is class 2, but there are 2 classes"),
        ([[0.0, 1.0]], [-1], "all are missing"),
        ([[0, 1]], [0], "expected floats"),
        ([[0.0, 1.0]], [0, 1], "expected 1 integers, one per row"),
    ],
)
def test_bad_input(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_scores(np.array(logits), np.array(labels))


def test_the_first_of_an_images_classes_loses_ties_to_the_classes_before_it():
    found = multilabel_scores(np.array([[1.0, 1, 0], [1, 1, 0]]), [[0], [1, 2]])
    assert found.top1_acc == 0.5 and found.top5_acc == 1


@pytest.mark.parametrize("at", [(), (0,), (1, 2.5)])
def test_bad_k(at):
    for score in (classification_scores, real_scores):
        with pytest.raises(ValueError, match="at: got .*, expected whole numbers"):
            score(np.eye(2), np.array([0, 1]) if score is classification_scores else [[0], [1]], at=at)
    with pytest.raises(ValueError, match="columns: got none"):
        classification_scores(np.eye(2), np.array([0, 1]), columns=[])
