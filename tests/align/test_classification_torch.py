"""ALIGN's image tower as a classifier."""

import tiny
import torch
from torch.nn import functional as F

from kakao_models import AlignVisionModel
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
