import io
import re
import types
import warnings

import numpy as np
import pytest
import tiny
import torch
import transformers
from tolerances import TOLERANCE

from kakao_models import AlignModel, AlignProcessor, Embedder, ViTModel, pipeline
from kakao_models.inference.engine_towers import TowerEngine
from kakao_models.inference.labels import LabelEmbeddings, check_templates, label_problems, takes_label
from kakao_models.pixels.images import ImageError

LABELS = ["cat", "dog", "small red house", "zebra"]


def same(ours, theirs) -> None:
    """Equal results, list by list: the same labels in the same order, with the same scores."""
    assert type(ours) is type(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        if isinstance(a, dict):
            assert a.keys() == b.keys() and a["label"] == b["label"]
            assert type(a["score"]) is float and a["score"] == pytest.approx(b["score"], abs=TOLERANCE["scores"])
        else:
            same(a, b)


@pytest.fixture(scope="module")
def zero_shot(align):
    return pipeline("zero-shot-image-classification", align, batch_size=3)


@pytest.fixture(scope="module")
def theirs(align):
    return transformers.pipeline("zero-shot-image-classification", model=align)


@pytest.fixture
def texts_seen(monkeypatch):
    """Counts the texts that reach the text tower."""
    seen = []
    run = TowerEngine.texts

    def counted(self, input_ids, attention_mask):
        seen.extend(input_ids.tolist())
        return run(self, input_ids, attention_mask)

    monkeypatch.setattr(TowerEngine, "texts", counted)
    return seen


@pytest.mark.parametrize("arguments", [{}, {"hypothesis_template": "a {} with a tree"}])
def test_zero_shot_gives_what_transformers_gives(zero_shot, theirs, photos, arguments):
    same(zero_shot(photos, LABELS, **arguments), theirs(photos, candidate_labels=LABELS, **arguments))
    one = zero_shot(photos[0], candidate_labels=LABELS, **arguments)
    same(one, theirs(photos[0], candidate_labels=LABELS, **arguments))
    assert zero_shot(images=photos[0], candidate_labels=LABELS, **arguments) == one
    assert zero_shot(photos[:1], ["cat"])[0] == [{"score": 1.0, "label": "cat"}]
    assert one != zero_shot(photos[5], LABELS, **arguments)


def test_what_goes_in_decides_what_comes_out(zero_shot, photos):
    results = zero_shot(photos, LABELS)
    streamed = zero_shot((path for path in photos), LABELS)
    assert isinstance(streamed, types.GeneratorType) and list(streamed) == results
    assert zero_shot(tuple(photos), LABELS) == results
    assert zero_shot(photos[0].rsplit("/", 1)[0], LABELS) == results
    assert zero_shot([], LABELS) == []
    assert [len(result) for result in zero_shot(photos, LABELS, top_k=2)] == [2] * len(photos)
    same(zero_shot(photos[1], LABELS, top_k=2), results[1][:2])


def test_a_generator_streams(zero_shot, photos):
    results = zero_shot((photos[index] for index in iter(int, 1)), LABELS, batch_size=2)
    same(next(results), zero_shot(photos[0], LABELS))
    same(next(results), zero_shot(photos[0], LABELS))
    results.close()


def test_each_label_is_encoded_once(align, texts_seen):
    labels = [
        f"{color} {thing} {number}" for color in tiny.WORDS[8:13] for thing in tiny.WORDS[13:18] for number in range(40)
    ]
    assert len(set(labels)) == 1000
    run = pipeline("zero-shot-image-classification", align)
    pictures = [tiny.picture(seed) for seed in range(100)]
    results = run(pictures, labels, top_k=1)
    assert len(results) == 100 and len(texts_seen) == 1000
    run(pictures[0], labels)
    same(run(pictures[0], labels[::-1], top_k=1), results[0])
    run(pictures[0], [*labels[500:], "tree", "sea"])
    assert len(texts_seen) == 1002


def test_the_cache_knows_templates_and_is_bounded(align, texts_seen):
    embed = LabelEmbeddings(Embedder(align), max_labels=3)
    first = embed(["cat", "dog"], ["a {}"])
    assert np.abs(first - embed(["cat", "dog"], ["the {}"])).max() > 1e-3
    assert len(texts_seen) == 4
    again = embed(["dog", "cat"], ["a {}"])  # "cat" was dropped and is encoded again
    assert np.abs(again[::-1] - first).max() < TOLERANCE["batching"]
    assert len(texts_seen) == 5
    assert embed([str(number) for number in range(10)], ["{}"]).shape == (10, 16)
    assert len(texts_seen) == 15
    embed(["9", "8", "7"], ["{}"])
    assert len(texts_seen) == 15
    embed(["6"], ["{}"])
    assert len(texts_seen) == 16


@pytest.mark.parametrize(
    "template",
    ["a cat", "{} {}", "{0} {}", "{:>99999999999}", "{0:>9}", "{} {0.x}", "{0.__class__}", "{0!r}", "{x}", "{", "}", 3],
)
def test_what_is_no_template_is_not_tried_out(template):
    assert not takes_label(template)
    assert all(map(takes_label, ("{}", "a {}", "{0} and {0}", "{{}} {}")))


def test_several_templates_are_averaged(align, zero_shot, photos):
    templates = ["a photo of a {}", "the small {} in the tree", "{}"]
    embedder = Embedder(align)
    rows = [embedder.texts([template.format(label) for label in LABELS], normalize=True) for template in templates]
    mean = sum(rows) / 3
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    logits = embedder.logits(embedder.images(photos), mean)
    scores = torch.from_numpy(logits).softmax(1).numpy()
    assert np.abs(LabelEmbeddings(embedder)(LABELS, templates) - mean).max() < TOLERANCE["batching"]
    results = zero_shot(photos, LABELS, hypothesis_template=templates)
    for result, row in zip(results, scores):
        assert [entry["score"] for entry in result] == pytest.approx(sorted(row, reverse=True), abs=TOLERANCE["scores"])
    same(zero_shot(photos, LABELS, hypothesis_template=["a {}"]), zero_shot(photos, LABELS, hypothesis_template="a {}"))


def test_long_labels_are_cut_at_64_tokens(zero_shot, photos):
    long = "cat " * 80
    template = "{}"
    scores = zero_shot(photos[0], [long, "cat " * 62, "dog"], hypothesis_template=template)
    by_label = {entry["label"]: entry["score"] for entry in scores}
    assert by_label[long] == pytest.approx(by_label["cat " * 62], abs=1e-6) != by_label["dog"]


def test_unreadable_images(zero_shot, photos, tmp_path):
    sources = [photos[0], str(tmp_path / "absent.jpg"), photos[1]]
    with pytest.raises(ImageError, match=r"absent\.jpg"):
        zero_shot(sources, LABELS)
    expected = zero_shot(photos[:2], LABELS)
    with pytest.warns(UserWarning, match=r"1 of 3 .*\n.*absent\.jpg"):
        first, missing, second = zero_shot(sources, LABELS, on_error="report")
    same([first, second], expected)
    assert missing is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert zero_shot(sources[1], LABELS, on_error="ignore") is None


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ({}, {}),
        ({}, {"top_k": 2}),
        ({}, {"top_k": 100}),
        ({}, {"function_to_apply": "sigmoid"}),
        ({}, {"function_to_apply": "NONE"}),
        ({"problem_type": "multi_label_classification"}, {}),
        ({"problem_type": "regression"}, {}),
        ({"id2label": {0: "cat"}}, {}),
    ],
)
def test_image_classification_gives_what_transformers_gives(tmp_path, photos, config, arguments):
    folder = tiny.vit_folder(tmp_path, **config)
    ours, theirs = pipeline("image-classification", folder), transformers.pipeline("image-classification", model=folder)
    same(ours(photos, **arguments), theirs(photos, **arguments))
    same(ours(photos[0], **arguments), theirs(photos[0], **arguments))


def test_image_feature_extraction_gives_what_transformers_gives(vit, photos):
    ours = pipeline("image-feature-extraction", vit)
    theirs = transformers.pipeline("image-feature-extraction", model=vit)
    for mine, expected in zip([ours(photos[0]), *ours(photos)], [theirs(photos[0]), *theirs(photos)], strict=True):
        assert isinstance(mine, list)
        assert np.abs(np.array(mine) - np.array(expected)).max() <= TOLERANCE["batching"]
        assert np.shape(mine) == np.shape(expected)
    tensor = ours(photos[0], return_tensors=True)
    assert isinstance(tensor, torch.Tensor) and tensor.tolist() == ours(photos[0])
    options = {"size": {"height": 16, "width": 32}}
    with pytest.raises(ValueError, match="16"):  # the processor obeys, the model has positions for 32 x 32
        ours(photos[0], image_processor_kwargs=options)


def test_image_feature_extraction_of_align(align, photos):
    embedder = Embedder(align)
    run = pipeline("image-feature-extraction", embedder, pool=True)
    assert run.embedder is embedder
    assert np.array_equal(np.array(run(photos))[:, 0], embedder.images(photos))
    assert np.shape(run(photos[0], pool=False)) == (1, 16, 4, 4)


def test_a_model_comes_by_name_as_embedder_or_as_object(align, zero_shot, photos):
    expected = zero_shot(photos, LABELS)
    model, processor = AlignModel.from_pretrained(align), AlignProcessor.from_pretrained(align)
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    for arguments in ({"processor": processor}, parts):
        run = pipeline("zero-shot-image-classification", model, candidate_labels=LABELS, **arguments)
        same(run(photos), expected)
    same(pipeline("zero-shot-image-classification", align, device=-1)(photos, LABELS), expected)


def test_transformers_runs_our_model_and_processor(align, zero_shot, photos):
    model, processor = AlignModel.from_pretrained(align), AlignProcessor.from_pretrained(align)
    run = transformers.pipeline(
        "zero-shot-image-classification",
        model=model,
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
    )
    same(zero_shot(photos, LABELS), run(photos, candidate_labels=LABELS))


def test_wrong_arguments_are_named(zero_shot, align, vit, photos):
    with pytest.raises(ValueError, match="at least one label, got none"):
        zero_shot(photos)
    with pytest.raises(ValueError, match=r"list of labels, got the string 'cat,dog'"):
        zero_shot(photos, "cat,dog")
    with pytest.raises(ValueError, match="expected strings, got 3"):
        zero_shot(photos, ["cat", 3])
    for template in ("a photo", "a {} of {}", "a {thing}", "a {"):
        with pytest.raises(ValueError, match="hypothesis_template"):
            zero_shot(photos, ["cat", "dog"], hypothesis_template=template)
    with pytest.raises(TypeError, match="candidate_label"):
        zero_shot(photos, candidate_label=["cat"])
    with pytest.raises(TypeError, match="no argument 'topk'"):
        pipeline("zero-shot-image-classification", align, topk=3)
    with pytest.raises(TypeError, match="no images"):
        zero_shot(candidate_labels=["cat"])
    with pytest.raises(ValueError, match="expected one of zero-shot-image-classification, .* passed as model="):
        pipeline("image-to-text", align)
    with pytest.raises(ValueError, match="has no text tower.* the task for this model is image-classification"):
        pipeline("zero-shot-image-classification", vit)
    with pytest.raises(ValueError, match="no classifier.* the task zero-shot-image-classification"):
        pipeline("image-classification", align)
    backbone = ViTModel(tiny.vit_config())
    with pytest.raises(ValueError, match="no classifier.* the task for this model is image-feature-extraction"):
        pipeline("image-classification", backbone, processor=vit)
    with pytest.raises(ValueError, match="function_to_apply"):
        pipeline("image-classification", vit)(photos, function_to_apply="tanh")


@pytest.mark.parametrize("top_k", [0, -1, 1.5])
def test_top_k_is_a_number_of_labels(zero_shot, vit, photos, top_k):
    with pytest.raises(ValueError, match="top_k"):
        zero_shot(photos[0], candidate_labels=["cat", "dog", "sea"], top_k=top_k)
    with pytest.raises(ValueError, match="top_k"):
        pipeline("image-classification", vit)(photos[0], top_k=top_k)


def test_labels_that_mean_nothing_to_the_model_are_named(align, zero_shot, photos):
    with pytest.warns(UserWarning, match=r"knows no word of '고양이', '🐶', so their scores mean nothing") as warned:
        zero_shot(photos[0], ["고양이", "🐶", "red cat"])
    assert [warning.filename for warning in warned] == [__file__]
    with pytest.warns(UserWarning, match=r"'Cat', 'cat' are the same tokens to .*, so they share their score"):
        zero_shot(photos[0], ["Cat", "cat", "dog"])
    with pytest.warns(UserWarning, match=r"candidate_labels: 'cat' is there more than once, and count"):
        result = zero_shot(photos[0], ["cat", "dog", "cat"])
    same(result, zero_shot(photos[0], ["cat", "dog"]))
    with pytest.warns(UserWarning, match="'cat' is the only label, so its score is always 1"):
        assert zero_shot(photos[0], ["cat"])[0]["score"] == 1
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match=r"candidate_labels: label 1 is empty"):
            zero_shot(photos[0], ["cat", empty])
    complete = Embedder(align, tokenizer=zero_shot.embedder.tokenizer)  # transformers' tokenizer, not the light one
    assert label_problems(complete, ["cat", "고양이"]) == label_problems(Embedder(align), ["cat", "고양이"]) != []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero_shot(photos[0], ["cat", "a zebra"])


@pytest.mark.parametrize(
    ("template", "meant"),
    [
        ("a {label} in the sea", "a {} in the sea"),
        ("a photo of a", "a photo of a {}"),
        ("a photo of a.", "a photo of a {}"),
        ("a %s", "a {}"),
        ("{} and {}", "a photo of a {}"),
        (3, "a photo of a {}"),
    ],
)
def test_a_template_without_a_place_for_the_label_is_answered_by_one(template, meant):
    with pytest.raises(ValueError, match=re.escape(f"write {meant!r}")):
        check_templates([template])


def test_a_single_image_or_all_that_fail_are_an_error(zero_shot, tmp_path):
    absent = str(tmp_path / "absent.jpg")
    for sources in (absent, io.BytesIO(b"nothing")):
        with pytest.raises(ImageError):
            zero_shot(sources, LABELS, on_error="report")
    with pytest.raises(ImageError, match=r"all 2 images: 2 of 2 images could not be read:\n.*absent\.jpg"):
        zero_shot([absent, b"nothing"], LABELS, on_error="report")
    assert zero_shot([absent, b"nothing"], LABELS, on_error="ignore") == [None, None]
    with pytest.raises(TypeError, match=r"no argument 'topk'; did you mean 'top_k'"):
        zero_shot(absent, LABELS, topk=3)
    with pytest.raises(TypeError, match=r"no argument 'device'; it is an argument of pipeline"):
        zero_shot(absent, LABELS, device="cpu")
