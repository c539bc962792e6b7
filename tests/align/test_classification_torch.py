"""ALIGN's image tower as a classifier."""

import numpy as np
import tiny
import torch
from torch.nn import functional as F

from kakao_models import AlignImageProcessor, AlignVisionModel, Embedder
from kakao_models.align.classification_torch import AlignForImageClassification


def classifier(folder) -> AlignForImageClassification:
    source = tiny.align_folder(folder)
    return AlignForImageClassification.from_pretrained(source, num_labels=3, ignore_mismatched_sizes=True)


def test_it_takes_the_tower_of_an_align_and_starts_at_equal_probabilities(tmp_path):
    model = classifier(tmp_path)
    tower = AlignVisionModel.from_pretrained(tmp_path)
    pixels = torch.rand(4, 3, 32, 32) * 2 - 1
    for name, x in tower.state_dict().items():
        assert torch.equal(x, model.vision_model.state_dict()[name])
    assert torch.equal(model(pixels).logits, torch.zeros(4, 3))
    with torch.no_grad():
        model.classifier.weight.normal_()
    features = tower(pixels).pooler_output
    output = model(pixels, labels=torch.tensor([0, 2, 1, 1]))
    torch.testing.assert_close(output.logits, features @ model.classifier.weight.T)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, torch.tensor([0, 2, 1, 1])))


def test_a_folder_gives_back_what_was_saved(tmp_path):
    model = tiny.fill(classifier(tmp_path / "align"))
    model.save_pretrained(tmp_path / "saved")
    again = AlignForImageClassification.from_pretrained(tmp_path / "saved")
    assert again.config.num_labels == 3
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(pixels).logits, model(pixels).logits)


def test_a_linear_probe_trains_the_head_alone(tmp_path):
    model = classifier(tmp_path)
    model.freeze_backbone()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(torch.rand(4, 3, 32, 32), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    optimizer.step()
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_several_labels_an_image_have_the_original_s_loss_in_micro_batches_too(tmp_path):
    model = tiny.fill(classifier(tmp_path))
    pixels, labels = torch.rand(4, 3, 32, 32) * 2 - 1, torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]])
    output = model(pixels, labels=labels)  # whole numbers too: the form says that there are several
    expected = F.binary_cross_entropy_with_logits(output.logits, labels.float(), reduction="sum") / 4
    torch.testing.assert_close(output.loss, expected)
    halves = [model(pixels[i::2], labels=labels[i::2], num_items_in_batch=labels.numel()).loss for i in (0, 1)]
    torch.testing.assert_close(sum(halves), output.loss)


def test_a_configuration_without_dicts_gives_tuples_and_is_run_all_the_same(tmp_path):
    folder = tiny.align_classifier_folder(tmp_path)
    model = AlignForImageClassification.from_pretrained(folder, return_dict=False).eval()
    pixels, labels = torch.rand(2, 3, 32, 32), torch.tensor([1, 2])
    loss, logits = model(pixels, labels=labels)
    named = model(pixels, labels=labels, return_dict=True)
    assert torch.equal(loss, named.loss) and torch.equal(logits, named.logits)
    got, wanted = Embedder(model, processor=AlignImageProcessor.from_pretrained(folder)), Embedder(folder)
    for run in ("images", "class_logits"):
        np.testing.assert_allclose(
            getattr(got, run)([tiny.picture(0)]), getattr(wanted, run)([tiny.picture(0)]), atol=1e-5
        )
    hidden = next(got.iter_images([tiny.picture(0)], output="hidden")).values
    np.testing.assert_allclose(hidden, next(wanted.iter_images([tiny.picture(0)], output="hidden")).values, atol=1e-5)


def test_without_classes_it_gives_the_features(tmp_path):
    model = tiny.fill(AlignForImageClassification(tiny.align_vision_config(num_labels=0, id2label=None)))
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(pixels).logits, model.vision_model(pixels).pooler_output)
    model.save_pretrained(tmp_path)
    AlignImageProcessor(size=40, crop_size=32).save_pretrained(tmp_path)
    assert not Embedder(tmp_path).engine.classifies
