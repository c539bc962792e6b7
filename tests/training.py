"""Small training runs for tests: a tiny ALIGN or ViT, twelve pictures with captions, a trainer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch

from kakao_models import (
    AlignImageProcessor,
    AlignModel,
    AlignProcessor,
    ViTForImageClassification,
    ViTImageProcessor,
)
from kakao_models.samples.sources import Records
from kakao_models.train.arguments import TrainArguments
from kakao_models.train.augment import RandomCrop
from kakao_models.train.data import TrainData
from kakao_models.train.gradcache import BatchNormStatistics
from kakao_models.train.loss import tiled_contrastive_loss
from kakao_models.train.optim import build_optimizer, parameter_groups
from kakao_models.train.trainer import AlignTrainer, ViTTrainer
from kakao_models.train.transform import SampleTransform

GHOST = 4


def records(count: int = 32) -> list[dict]:
    words = tiny.WORDS
    return [
        {"image": tiny.picture(n), "captions": [f"a {words[n % 20]} {words[n % 7]}", f"photo {n}"], "label": n % 7}
        for n in range(count)
    ]


def align_processor() -> AlignProcessor:
    return AlignProcessor(AlignImageProcessor(size=36, crop_size=32), tiny.tokenizer())


def align_trainer(output: Path, dropout: float = 0.0, count: int = 32, data=None, **options) -> AlignTrainer:
    torch.manual_seed(0)
    config = tiny.align_config(temperature_init_value=0.1)
    config.vision_config.virtual_batch_size, config.vision_config.drop_connect_rate = GHOST, dropout
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = dropout
    model = tiny.fill(AlignModel(config))
    processor = align_processor()
    prepare = SampleTransform(RandomCrop(36, 32), processor.image_processor, tokenizer=processor.tokenizer)
    data = TrainData(Records(records(count)) if data is None else data, prepare, seed=3)
    return AlignTrainer(model, arguments(output, **options), train_dataset=data, processing_class=processor)


def align_step(model: AlignModel, batch: dict, world: int = 1) -> dict:
    """Loss, and weights after a step of LAMB, in a loop of one's own; `world` processes have a share of the batch each."""
    names = "input_ids", "attention_mask"
    output = model.train()(pixel_values=batch["pixel_values"].double(), **{name: batch[name] for name in names})
    loss = tiled_contrastive_loss(output.image_embeds, output.text_embeds, model.temperature)
    (loss * world).backward()  # FSDP takes the mean over processes, and this wants the sum
    if world > 1:  # not sharded, and so not reduced
        torch.distributed.all_reduce(model.temperature.grad)
        model.temperature.grad /= world
        BatchNormStatistics(model).average()
    build_optimizer("lamb", parameter_groups(model, lr=0.01, weight_decay=0.1), eps=1e-3).step()
    return {"loss": loss.detach(), "weights": model.state_dict()}


def vit_trainer(output: Path, **options) -> ViTTrainer:
    torch.manual_seed(0)
    model = tiny.fill(ViTForImageClassification(tiny.vit_config()))
    processor = ViTImageProcessor(size=32)
    data = TrainData(Records(records()), SampleTransform(RandomCrop(36, 32), processor, classes=7), seed=3)
    settings = arguments(output, **{"optimizer": "sgd", **options})
    return ViTTrainer(model, settings, train_dataset=data, processing_class=processor)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in trainer.model.state_dict().items()}


def check_resume(make: Callable[[], Any], checkpoint: Path) -> Any:
    """Trains to the end, and again from the checkpoint before the last, `checkpoint`: the weights are the same to the bit. Returns
    the second trainer."""
    straight = make()
    straight.train()
    expected = weights(straight)
    shutil.rmtree(checkpoint)
    again = make()
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(x, expected[name]) for name, x in weights(again).items())
    return again


def arguments(output: Path, **options) -> TrainArguments:
    # SGD, as LAMB and Adam make full-size steps of gradients that are zero but for rounding
    defaults = {
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "weight_decay": 1e-4,
        "max_steps": 3,
        "per_device_train_batch_size": 16,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "max_grad_norm": 1.0,
        "disable_tqdm": True,
    }
    return TrainArguments(str(output), **(defaults | options))
