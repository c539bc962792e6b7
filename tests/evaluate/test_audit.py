import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from kakao_models import Embedder
from kakao_models.evaluate import gap_scores, read_grouped, skew_scores
from kakao_models.evaluate.audit import fill_card

LINE = np.array(
    [[np.cos(a), np.sin(a)] for a in np.linspace(0, 1.5, 8)]
)  # images in the order in which the first axis finds them
QUERY = np.array([[1.0, 0.0]])


def test_skew_and_ndkl_by_hand():
    groups = list("aabbabbb")  # a: 3 of 8
    found = skew_scores(QUERY, LINE, groups, k=4)
    assert found.skew[0] == pytest.approx([np.log(0.5 / (3 / 8)), np.log(0.5 / (5 / 8))])
    assert found.max_skew[0] == pytest.approx(np.log(4 / 3))
    total, weights = 0.0, 0.0
    for i in range(1, 9):  # Geyik et al. 2019, equation 6
        share = groups[:i].count("a") / i
        kl = sum(p * np.log(p / q) for p, q in ((share, 3 / 8), (1 - share, 5 / 8)) if p)
        total, weights = total + kl / np.log2(i + 1), weights + 1 / np.log2(i + 1)
    assert found.ndkl[0] == pytest.approx(total / weights)
    assert found.metrics()["max_skew_at_4_worst"] == found.max_skew[0]
    uniform = skew_scores(QUERY, LINE, groups, k=4, expected="uniform")
    assert uniform.max_skew[0] == 0 and skew_scores(QUERY, LINE, groups, k=99).k == 8
    assert skew_scores(QUERY, LINE, groups, k=99).max_skew[0] == pytest.approx(0)


def test_a_group_that_is_not_found_has_no_skew_and_does_not_hide_the_others():
    found = skew_scores(QUERY, LINE, list("aaaabbbb"), k=2)
    assert found.skew[0, 1] == -np.inf and found.max_skew[0] == pytest.approx(np.log(2))


def test_the_gap_is_that_of_the_extreme_groups_with_an_interval():
    groups = ["a"] * 200 + ["b"] * 100 + ["c"] * 100
    hits = np.array(
        [i % 10 < 9 for i in range(200)] + [i % 10 < 5 for i in range(100)] + [i % 10 < 7 for i in range(100)]
    )
    found = gap_scores(hits, groups)
    assert found.shares == {"a": 0.9, "b": 0.5, "c": 0.7} and (found.largest, found.smallest) == ("a", "b")
    assert found.gap == pytest.approx(0.4) and found.overall == hits.mean()
    error = np.sqrt(0.9 * 0.1 / 200 + 0.5 * 0.5 / 100)
    assert found.low == pytest.approx(0.4 - 1.96 * error, abs=0.02)
    assert found.high == pytest.approx(0.4 + 1.96 * error, abs=0.02)
    assert gap_scores(hits, groups).low == found.low  # the same samples each time
    same = gap_scores(np.ones(400, bool), groups)
    assert (same.gap, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize(
    "groups, options, message",
    [
        (["a"] * 8, {}, "got 1 \\(a\\), expected at least two"),
        (["a", "b"], {}, "got 2 for 8 images"),
        (list("aabbabbb"), {"expected": "equal"}, "expected data or uniform"),
        (list("aabbabbb"), {"k": 0}, "k: got 0"),
    ],
)
def test_groups_that_can_not_be_compared(groups, options, message):
    with pytest.raises(ValueError, match=message):
        skew_scores(QUERY, LINE, groups, **options)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Eight images with a group; two of them without."""
    folder = tmp_path_factory.mktemp("people")
    images = [path.read_bytes() for path in tiny.picture_folder(folder / "images", 8)]
    columns = {"image": images, "age": ["old", "young", "old", None, "young", "old", "", "young"]}
    pq.write_table(pa.table(columns), folder / "plain.parquet")
    pq.write_table(pa.table(columns | {"label_name": ["cat", "dog"] * 4}), folder / "labelled.parquet")
    (folder / "jobs.txt").write_text("a photo\na picture of a house\n")
    (folder / "words.txt").write_text("red tree\nbig bird\n")
    (folder / "names.txt").write_text("cat\ndog\n")
    return folder


def test_images_without_a_group_are_left_out(people):
    found = read_grouped(str(people / "labelled.parquet"), "age")
    assert found.groups == ["old", "young", "old", "young", "old", "young"] and found.left_out == 2
    assert found.labelled.labels.tolist() == [0, 1, 0, 0, 1, 1] and len(found.labelled.images) == 6
    plain = read_grouped(str(people / "plain.parquet"), "age")
    assert plain.labelled.keys == [] and list(plain.labelled.images) == list(found.labelled.images)
    with pytest.raises(ValueError, match="has no column 'gender'"):
        read_grouped(str(people / "plain.parquet"), "gender")


def test_the_command_measures_what_the_embeddings_say(command, align, people, tmp_path):
    card, output = tmp_path / "README.md", tmp_path / "a.json"
    card.write_text("# Model\n\n## Bias and risks\n\nSome words.\n\n### More\n\nText.\n\n## Results\n\nNone.\n")
    arguments = (
        *("audit", "-d", people / "labelled.parquet", "--attribute-column", "age", "-m", align, "--no-cache"),
        *("--queries", people / "jobs.txt", "--harmful", people / "words.txt", "--templates", "a {}", "-k", 2),
    )
    code, out, err = command("evaluate", *arguments, "--card", card, "-o", output)
    assert code == 0, err
    found = json.loads(output.read_text())
    embedder, data = Embedder(align), read_grouped(str(people / "labelled.parquet"), "age")
    images = embedder.images(list(data.labelled.images), normalize=True)
    labels = embedder.texts(["a cat", "a dog", "a red tree", "a big bird"], normalize=True)
    right = (images @ labels[:2].T).argmax(1) == data.labelled.labels
    assert found["metrics"]["recall"] == right.mean()
    assert found["metrics"]["harmful_rate"] == ((images @ labels.T).argmax(1) >= 2).mean()
    wanted = skew_scores(embedder.texts(["a photo", "a picture of a house"]), images, data.groups, k=2)
    assert found["metrics"]["ndkl_worst"] == pytest.approx(wanted.ndkl.max())
    assert found["counts"] == {"images": 6, "groups": 2, "without_group": 2} and len(found["details"]["queries"]) == 2
    assert found["details"]["groups"]["old"]["images"] == 3
    assert (
        f"| ndkl worst | {wanted.ndkl.max():.3f} |" in out
        and "| old | 3 |" in out
        and "docs/audit.md" in out
        and command("evaluate", "report", output)[0] == 0
    )
    text = card.read_text()
    assert (
        text.index("Text.") < text.index("| old | 3 |") < text.index("## Results") and text.count("<!-- audit -->") == 1
    )
    assert (
        command("evaluate", *arguments, "--card", card)[0] == 0 and card.read_text() == text
    )  # replaced, not repeated


def test_without_labels_harmful_ones_compete_with_those_of_a_file(command, align, people):
    base = ("evaluate", "audit", "-d", people / "plain.parquet", "--attribute-column", "age", "-m", align, "--no-cache")
    code, out, _ = command(*base, "--harmful", people / "words.txt", "--classes", people / "names.txt", "--json")
    assert (
        code == 0
        and "recall" not in json.loads(out)["metrics"]
        and "harmful_rate_gap_low" in json.loads(out)["metrics"]
    )
    code, _, err = command(*base, "--harmful", people / "words.txt")
    assert code == 2 and "with --classes, or a label column" in err
    code, _, err = command(*base)
    assert code == 2 and "nothing to compare" in err


def test_a_card_without_a_section_on_bias_gets_one(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# Model\n")
    fill_card(card, "| a |")
    assert card.read_text() == "# Model\n\n## Bias\n\n<!-- audit -->\n| a |\n<!-- / -->\n"
    fill_card(card, "| b |")
    assert card.read_text() == "# Model\n\n## Bias\n\n<!-- audit -->\n| b |\n<!-- / -->\n"
    card.write_text("# Model\n\n## Bias\n\nLast.")
    fill_card(card, "| c |")
    assert card.read_text() == "# Model\n\n## Bias\n\nLast.\n\n<!-- audit -->\n| c |\n<!-- / -->\n"
    card.write_text("# Model\n\n<!-- audit -->\n| a |\n\n## Use\n\nNever lost.\n")
    with pytest.raises(ValueError, match="<!-- audit --> has no <!-- / --> after it"):
        fill_card(card, "| d |")
    assert "Never lost." in card.read_text()


def test_rows_of_json_may_lack_their_group(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"image": "a.png"}\n{"image": "b.png", "age": "old"}\n')
    found = read_grouped(tmp_path / "t.jsonl", "age")
    assert found.groups == ["old"] and found.left_out == 1


def test_a_result_on_standard_output(command, align, people, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ("evaluate", "audit", "-d", people / "plain.parquet", "--attribute-column", "age", "-m", align, "--no-cache")
    code, out, _ = command(*base, "--harmful", people / "words.txt", "--classes", people / "names.txt", "-o", "-")
    assert code == 0 and json.loads(out)["task"] == "audit" and not (tmp_path / "-").exists()
