import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml

from kakao_models.evaluate import Result, html_report, markdown_report, model_index, published
from kakao_models.evaluate.published import PUBLISHED
from kakao_models.evaluate.results import TASKS

ZERO = Result("zero-shot", "tiny|model", "imagenet", {"top1": 0.2345, "top5": 0.5, "mean_per_class": 0.2})
RETRIEVAL = Result(
    "retrieval",
    "tiny|model",
    "coco",
    {"image_to_text_r1": 0.11, "text_to_image_r1": 0.07, "text_to_image_median_rank": 42.0},
)


def test_results_survive_the_file_and_say_what_is_wrong_with_others(tmp_path):
    path = tmp_path / "a.json"
    ZERO.write(path)
    assert Result.read(path) == ZERO and [file.name for file in tmp_path.iterdir()] == ["a.json"]
    for text, message in (
        ("{", "is not a JSON file"),
        ("[]", "is not a result"),
        ('{"task": "x", "model": "", "dataset": "", "metrics": {}}', "is not a result"),
        ('{"task": "knn", "model": "", "dataset": "", "metrics": {"top1": "1"}}', "the metric top1 is '1'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            Result.read(path)
    with pytest.raises(ValueError):
        Result("knn", "m", "d", {"top1": float("nan")}).write(path)


def test_markdown_has_ours_in_percent_beside_published_figures_and_their_sources():
    text = markdown_report([ZERO, RETRIEVAL])
    assert "### zero-shot: imagenet" in text and "| top-1 | 23.4 | 76.4 |" in text and "tiny\\|model" in text
    assert "| image to text, R@1 | 11.0 | 58.6 | 55.4 | 61.2 | 59.0 | 22.1 | 21.2 |" in text
    assert "| text to image median rank | 42.0 |" in text and "arXiv:2102.05918" in text
    for line in text.split("### ")[1:]:  # every row of a table is as long as its head
        rows = [row for row in line.splitlines() if row.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "76.4" not in markdown_report([ZERO], published=False)


def test_intervals_stand_beside_their_figures():
    details = {"intervals": {"image_to_text_r1": [0.082, 0.14]}}
    result = Result("retrieval", "mine", "pairs", {"image_to_text_r1": 0.11, "text_to_image_r1": 0.07}, details=details)
    text = markdown_report([result])
    assert "| image to text, R@1 | 11.0 (8.2 to 14.0) |" in text and "| text to image, R@1 | 7.0 |" in text
    assert "95 % intervals" in text and "8.2 to 14.0" in html_report([result])
    assert "95 % intervals" not in markdown_report([RETRIEVAL])


def test_both_measurements_of_the_released_checkpoint_are_told_apart():
    """The authors' own figures and the independent ones differ; a user of the port gets the independent ones."""
    coco = Result("retrieval", "mine", "coco", {"image_to_text_r1": 0.593, "text_to_image_r1": 0.421})
    text = markdown_report([coco])
    assert "| image to text, R@1 | 59.3 |" in text and "59.3 |\n" in text and "61.2" in text
    (independent,) = [line for line in text.splitlines() if line.startswith("- *kakaobrain/align-base")]
    assert "revision e96a37f (2024): independent, with mteb" in independent and "correct port" in independent
    authors = [line for line in text.splitlines() if line.startswith("- *COYO-ALIGN B7")]
    assert "(November 2022): the authors' own evaluation on TPUs" in authors[0] and "three months before" in authors[1]
    assert not any("correct port" in line for line in authors)


ONE_PROMPT = {"templates": ["a photo of {}."]}


@pytest.mark.parametrize(
    "result, expected",
    [
        (("zero-shot", "imagenet", {"top1": 0.6251}, {"images": 50_000}, ONE_PROMPT), "62.5 reproduced"),
        (("zero-shot", "imagenet", {"top1": 0.6289}, {"images": 50_000}, ONE_PROMPT), "62.9 reproduced"),
        (("zero-shot", "imagenet", {"top1": 0.624}, {"images": 50_000}, ONE_PROMPT), "62.4 not reproduced"),
        (("zero-shot", "imagenet", {"top1": 0.627}, {"images": 12}, ONE_PROMPT), "62.7 other protocol"),
        (
            ("zero-shot", "imagenet", {"top1": 0.627}, {"images": 50_000}, {"templates": ["{}", "a {}."]}),
            "62.7 other protocol",
        ),
        (("retrieval", "COCO", {"image_to_text_r1": 0.594}, {"images": 5000}, {}), "59.4 reproduced"),
        (("retrieval", "coco", {"image_to_text_r1": 0.612}, {"images": 5000}, {}), "61.2 not reproduced"),
        (("retrieval", "coco", {"image_to_text_r1": 0.6}, {"images": 1000}, {}), "60.0 other protocol"),
        (("pairs", "winoground", {"text_score": 0.3525}, {"sets": 400}, {}), "35.25 reproduced"),
        (("knn", "imagenet", {"top1": 0.686}, {}, {}), "68.600 other protocol"),  # only the authors measured it
        (("mieb", "MIEB", {"CIFAR10": 0.8123}, {}, {}), "81.23 reproduced"),
        (("mieb", "MIEB", {"CIFAR10": 0.7}, {}, {"CIFAR10 revision": "another"}), "70.00 other protocol"),
        (
            ("mieb", "MIEB", {"CIFAR10": 0.7}, {}, {"CIFAR10 revision": "0b2714987fa478483af9968de7c934580d0bb9a2"}),
            "70.00 not reproduced",
        ),
    ],
)
def test_figures_of_a_released_checkpoint_are_judged(result, expected):
    task, dataset, metrics, counts, settings = result
    measured = Result(task, "kakaobrain/align-base", dataset, metrics, counts=counts, settings=settings)
    text = markdown_report([measured])
    verdict = expected.partition(" ")[2]
    assert f" | {expected} |" in text and f"{verdict}, " in text.split("Reproduced: the same protocol")[1]
    assert f">{expected}<" in html_report([measured])  # with its bar
    another = replace(measured, model="mine")
    assert "protocol" not in markdown_report([another]).split("- *")[0]
    assert expected in markdown_report([another], checkpoint="kakaobrain/align-base")
    assert expected not in markdown_report([measured], published=False)


def test_a_vit_is_judged_by_the_figures_of_its_own_resolution():
    measured = Result("classify", "vit-large-patch16-512", "imagenet", {"top1": 0.8672}, counts={"images": 50_000})
    text = markdown_report([measured])
    assert "86.72 not reproduced" in text and "-0.52 to 87.24" in text
    assert "86.72 reproduced" in markdown_report([replace(measured, model="kakaobrain/vit-large-patch16-384")])


def test_figures_of_mteb_are_as_it_wrote_them():
    tasks = published.MIEB["tasks"]
    assert all(re.fullmatch("[0-9a-f]{40}", task["dataset_revision"]) for task in tasks.values())
    assert all(-1 < value <= 1 for task in tasks.values() for value in task["metrics"].values())
    assert {task["protocol"] for task in tasks.values()} == set(published.MIEB["protocols"])
    found = {(f.dataset, f.metric): f.value for f in PUBLISHED if f.model == published.ALIGN_BASE}
    assert found["imagenet", "top1"] == 62.7 and found["coco", "text_to_image_r10"] == 76.36
    assert found["winoground", "group_score"] == 8.25 and found["sugarcrepe", "text_score"] == 81.2


def test_two_runs_of_one_model_are_two_columns():
    text = markdown_report([ZERO, Result("zero-shot", "tiny|model", "imagenet", {"top1": 0.9})], published=False)
    assert "tiny\\|model (2)" in text and "| top-1 | 23.4 | 90.0 |" in text and "| top-5 | 50.0 |  |" in text


def test_html_is_balanced_escaped_and_has_bars():
    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.bars = [], []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_startendtag(self, tag, attributes):
            if dict(attributes)["fill"] != "#eef1f4":
                self.bars.append(float(dict(attributes)["width"]))

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    page = Balance()
    text = html_report([Result("zero-shot", "<b>x", "imagenet", {"top1": 0.5})])
    page.feed(text)
    assert not page.open and "<b>" not in text and page.bars == [80.0, 122.2, 100.3]


def test_model_index_is_what_the_hub_reads():
    (entry,) = yaml.safe_load(model_index([ZERO, RETRIEVAL]))["model-index"]
    assert entry["name"] == "tiny|model"
    for result in entry["results"]:
        assert set(result) == {"task", "dataset", "metrics"} and all(result["dataset"].values())
    assert entry["results"][0]["metrics"][0] == {"type": "top1", "name": "top-1", "value": 23.45}
    assert entry["results"][1]["metrics"][-1]["value"] == 42.0
    hub = pytest.importorskip("huggingface_hub").ModelCard(f"---\n{model_index([ZERO])}---\n")
    assert hub.data.eval_results[0].metric_value == 23.45
    with pytest.raises(ValueError, match="results of 2 models"):
        model_index([ZERO, Result("knn", "other", "x", {"top1": 1.0})])


def test_published_figures_are_percentages_of_known_tasks_said_once():
    for figure in PUBLISHED:
        assert (
            figure.task in TASKS
            and 0 < figure.value < 100
            and figure.source
            and figure.dataset == figure.dataset.lower()
        )
    keys = [(f.model, f.task, f.dataset, f.metric, f.note) for f in PUBLISHED]
    assert len(set(keys)) == len(keys)
    with pytest.raises(ValueError, match="got no results"):
        markdown_report([])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"settings": None}, "the field settings is None, expected a JSON object"),
        ({"metrics": [1]}, "the field metrics is \\[1\\]"),
        ({"dataset": 3}, "the field dataset is 3, expected a text"),
        ({"model": None}, "the field model is None"),
        ({"metrics": {"top1": True}}, "the metric top1 is True"),
    ],
)
def test_fields_of_another_kind_are_named(tmp_path, change, message):
    path = tmp_path / "odd.json"
    good = {"task": "knn", "model": "m", "dataset": "d", "metrics": {"top1": 0.5}}
    path.write_text("\ufeff" + json.dumps(good), encoding="utf-8")  # as some editors save it
    assert Result.read(path).metrics == {"top1": 0.5}
    path.write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=message):
        Result.read(path)


def test_published_figures_keep_their_digits_and_ours_beside_them_have_as_many():
    text = markdown_report([Result("classify", "m", "imagenet", {"top1": 0.86719, "top5": 0.98, "real_top1": 0.9})])
    assert "| top-1 | 86.72 | 87.12 | 86.72 | 87.76 | 87.24 |" in text and "| top-5 | 98.0 |" in text
    assert "| real top-1 | 90.00 | 89.99 | 89.84 | 90.54 | 90.03 |" in text
