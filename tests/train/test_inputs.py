"""Datasets and processors that the trainers take, and what they say to those that they cannot use."""

import datasets
import numpy as np
import pytest
import tiny
import torch
import training
import transformers
from transformers import TrainingArguments

from kakao_models import AlignForImageClassification, AlignModel, ViTForImageClassification, ViTImageProcessor
from kakao_models.samples.sources import open_source
from kakao_models.train.data import StreamData, TrainData
from kakao_models.train.inputs import EvalData
from kakao_models.train.trainer import AlignTrainer, ViTTrainer
from kakao_models.train.transform import SampleTransform

NAMES = ["cat", "dog", "bird", "car", "tree", "house", "sea"]  # of `tiny.vit_config`
ROWS = [{"image": r["image"], "caption": r["captions"][0], "label": r["label"]} for r in training.records(8)]
PROCESSOR = training.align_processor()
IMAGES = ViTImageProcessor(size=32)
VIT = ViTForImageClassification(tiny.vit_config())
ALIGN = AlignModel(tiny.align_config())


class Items(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


def table() -> datasets.Dataset:
    return datasets.Dataset.from_list(ROWS)


def settings(folder, **options) -> TrainingArguments:
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 3}
    return TrainingArguments(str(folder), use_cpu=True, save_strategy="no", report_to=[], **(sizes | options))


def written(kind, folder):
    """`ROWS` as one of the kinds of datasets."""
    if kind == "torch dataset":
        return Items(ROWS)
    if kind == "datasets.Dataset":
        return table()
    if kind == "class labels":
        return table().cast_column("label", datasets.ClassLabel(names=NAMES))
    if kind in ("path", "list of paths", "source"):
        path = folder / "rows.parquet"
        table().to_parquet(path)
        return {"path": path, "list of paths": [str(path)], "source": open_source(path)}[kind]
    assert kind == "list"
    return ROWS


@pytest.mark.parametrize(
    "kind", ["list", "torch dataset", "datasets.Dataset", "class labels", "path", "list of paths", "source"]
)
def test_every_kind_of_dataset_gives_the_same_batches(kind, tmp_path):
    data = written(kind, tmp_path)
    for cls, model, processor in ((AlignTrainer, ALIGN, PROCESSOR), (ViTTrainer, VIT, IMAGES)):
        trainer = cls(model, settings(tmp_path), train_dataset=data, eval_dataset=data, processing_class=processor)
        assert isinstance(trainer.train_dataset, TrainData) and isinstance(trainer.eval_dataset, EvalData)
        batch = next(iter(trainer.get_train_dataloader()))
        assert batch["pixel_values"].shape == (4, 3, 32, 32) and len(batch["keys"]) == 4
        parts = list(trainer.get_eval_dataloader())
        pixels = torch.cat([part["pixel_values"] for part in parts]).numpy()
        images = [row["image"] for row in ROWS]
        np.testing.assert_array_equal(pixels, processor(images=images, return_tensors="np")["pixel_values"])
        if cls is ViTTrainer:
            assert torch.cat([part["labels"] for part in parts]).tolist() == [row["label"] for row in ROWS]
        else:
            expected = PROCESSOR(text=[row["caption"] for row in ROWS[:3]], return_tensors="pt")["input_ids"]
            assert torch.equal(parts[0]["input_ids"], expected)


def test_a_streaming_dataset_trains_and_is_refused_for_evaluation(tmp_path):
    stream, options = table().to_iterable_dataset(), settings(tmp_path, max_steps=1)
    trainer = ViTTrainer(VIT, options, train_dataset=stream, processing_class=IMAGES)
    assert isinstance(trainer.train_dataset, StreamData)
    assert next(iter(trainer.get_train_dataloader()))["pixel_values"].shape == (4, 3, 32, 32)
    with pytest.raises(
        ValueError, match=r"eval_dataset: a stream can be read only once: .*list\(stream.take\(1000\)\)"
    ):
        ViTTrainer(VIT, options, eval_dataset=stream, processing_class=IMAGES)


@pytest.mark.parametrize(
    "processor",
    [
        (PROCESSOR.tokenizer, PROCESSOR.image_processor),
        pytest.param("EfficientNetImageProcessorPil", id="image processor of transformers"),
    ],
)
def test_a_pair_of_an_image_processor_and_a_tokenizer_is_a_processor(processor, tmp_path):
    if isinstance(processor, str):
        size, crop = {"height": 36, "width": 36}, {"height": 32, "width": 32}
        images = getattr(transformers, processor)(size=size, do_center_crop=True, crop_size=crop)
        processor = (images, PROCESSOR.tokenizer)
    trainer = AlignTrainer(ALIGN, settings(tmp_path), train_dataset=ROWS, processing_class=processor)
    assert next(iter(trainer.get_train_dataloader()))["pixel_values"].shape == (4, 3, 32, 32)
    trainer.save_model(tmp_path / "saved")
    again = type(PROCESSOR).from_pretrained(tmp_path / "saved")
    assert again(text="a cat")["input_ids"] == PROCESSOR(text="a cat")["input_ids"]


def test_labels_may_be_several_or_names(tmp_path):
    model = ViTForImageClassification(tiny.vit_config(problem_type="multi_label_classification"))
    rows = [{"image": row["image"], "labels": [row["label"], NAMES[6]]} for row in ROWS[:6]]
    trainer = ViTTrainer(model, settings(tmp_path), eval_dataset=rows, processing_class=IMAGES)
    (first, _) = trainer.get_eval_dataloader()
    expected = torch.zeros(3, 7)
    expected[[0, 1, 2, 0, 1, 2], [0, 1, 2, 6, 6, 6]] = 1.0
    assert torch.equal(first["labels"], expected)


NO_IMAGE = "train_dataset: row: no column of images; its columns are (caption|label): name the column"


@pytest.mark.parametrize(
    "cls, data, message",
    [
        (
            AlignTrainer,
            [{"image": r["image"], "label": 0} for r in ROWS],
            "all 8 samples are unusable. row 0: no capt",
        ),
        (AlignTrainer, [{"caption": "a cat"}] * 8, NO_IMAGE),
        (ViTTrainer, [{"label": 0}] * 8, NO_IMAGE),
        (ViTTrainer, [{"image": r["image"]} for r in ROWS], "are unusable. row 0: expected one label, got 0"),
        (ViTTrainer, [r | {"label": r["label"] + 1} for r in ROWS], "row 6: label 7 is out of range, .* classes 0..6"),
        (
            ViTTrainer,
            [r | {"label": "fish"} for r in ROWS],
            "label 'fish' is not the name of a class; the classes are cat, dog",
        ),
        (ViTTrainer, Items([(r["image"], 0) for r in ROWS]), "items are tuple, expected dicts: .*pass a data_collator"),
        (ViTTrainer, {"train": ROWS}, r"train_dataset: got several datasets \(train\): choose one"),
        (ViTTrainer, "nowhere.parquet", "train_dataset: nowhere.parquet: no such file or folder"),
        (ViTTrainer, [], "train_dataset: .* has no samples"),
        (ViTTrainer, 3, "train_dataset: got 3, expected a dataset"),
        (ViTTrainer, iter(ROWS), "a list_iterator cannot be shuffled; pass a datasets.IterableDataset or a list"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_training(cls, data, message, tmp_path):
    model, processor = (ALIGN, PROCESSOR) if cls is AlignTrainer else (VIT, IMAGES)
    with pytest.raises(ValueError, match=message):
        cls(model, settings(tmp_path), train_dataset=data, processing_class=processor)


def test_class_names_that_differ_from_the_models_are_refused(tmp_path):
    def labelled(names):
        return table().cast_column("label", datasets.ClassLabel(names=names))

    def train(names):
        return ViTTrainer(VIT, settings(tmp_path), train_dataset=labelled(names), processing_class=IMAGES)

    with pytest.raises(ValueError, match="'label' has 8 classes, but the model has 7. Load it with num_labels=8"):
        train([*NAMES, "fish"])
    with pytest.raises(ValueError, match="in another order: 0 is 'sea', in the model 'cat'"):
        train(NAMES[::-1])
    with pytest.raises(ValueError, match=r"eval_dataset\['dev'\]: 'label' has 8 classes"):
        dev = {"dev": labelled([*NAMES, "fish"])}
        ViTTrainer(VIT, settings(tmp_path), eval_dataset=dev, processing_class=IMAGES)


@pytest.mark.parametrize(
    "cls, model, processor, message",
    [
        (AlignTrainer, ALIGN, None, "prepared by processing_class, an image processor with a tokenizer; got None"),
        (AlignTrainer, ALIGN, IMAGES, "with a tokenizer; got ViTImageProcessor. Pass AlignProcessor.from_pretrained"),
        (ViTTrainer, VIT, None, "prepared by processing_class, an image processor; got None"),
        (ViTTrainer, VIT, PROCESSOR.tokenizer, "an image processor; got BertTokenizer"),
        (ViTTrainer, VIT, ViTImageProcessor(size=48), "makes images of 48 x 48 pixels, but the model takes 32 x 32"),
        (
            ViTTrainer,
            VIT,
            ViTImageProcessor(size={"height": 32, "width": 48}),
            "32 x 48 pixels; the augmentations make",
        ),
        (
            ViTTrainer,
            ViTForImageClassification(tiny.vit_config(id2label={0: "height"})),
            IMAGES,
            "the model has num_labels=1 .*expected classes. For other targets pass a dataset of the model's inputs",
        ),
    ],
)
def test_processors_that_do_not_fit_are_refused(cls, model, processor, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        cls(model, settings(tmp_path), train_dataset=ROWS, processing_class=processor)


def test_training_data_for_another_model_are_refused(tmp_path):
    made = training.align_trainer(tmp_path)
    with pytest.raises(ValueError, match="its SampleTransform has no classes, but the model has 7"):
        ViTTrainer(VIT, settings(tmp_path), train_dataset=made.train_dataset)
    labelled = TrainData(open_source(ROWS), SampleTransform(made.train_dataset.prepare.augment, IMAGES, classes=7))
    with pytest.raises(ValueError, match="its SampleTransform has no tokenizer, but AlignTrainer trains on captions"):
        AlignTrainer(ALIGN, settings(tmp_path), train_dataset=labelled)


def test_a_data_collator_needs_a_dataset_of_items(tmp_path):
    for data in ("rows.parquet", open_source(ROWS), training.align_trainer(tmp_path).train_dataset):
        with pytest.raises(ValueError, match="train_dataset: data_collator works on the items of a dataset"):
            AlignTrainer(ALIGN, settings(tmp_path), lambda items: items, data)


@pytest.mark.parametrize(
    "cls, model, message",
    [
        (AlignTrainer, VIT, "AlignTrainer trains AlignModel of kakao_models, got .*ViTForImageClassification"),
        (
            ViTTrainer,
            ALIGN,
            "ViTTrainer trains ViTForImageClassification or AlignForImageClassification .*AlignTrainer",
        ),
        (AlignTrainer, torch.nn.Linear(2, 2), "got torch.nn.modules.linear.Linear"),
    ],
)
def test_models_of_another_kind_are_refused(cls, model, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        cls(model, settings(tmp_path), train_dataset=ROWS, processing_class=PROCESSOR)
    with pytest.raises(TypeError, match=message):
        cls(args=settings(tmp_path), model_init=lambda: model)


def test_a_broken_sample_of_the_evaluation_is_an_error_that_names_it(tmp_path):
    rows = [*ROWS[:2], {"image": b"no image", "label": 0}]
    trainer = ViTTrainer(VIT, settings(tmp_path), eval_dataset=rows, processing_class=IMAGES)
    with pytest.raises(ValueError, match="evaluation data: row 2: "):
        trainer.evaluate()


def test_an_aligns_classifier_takes_aligns_processor(tmp_path):
    config = tiny.align_config().vision_config
    config.num_labels = 7
    trainer = ViTTrainer(
        AlignForImageClassification(config), settings(tmp_path), train_dataset=ROWS, processing_class=PROCESSOR
    )
    assert next(iter(trainer.get_train_dataloader()))["pixel_values"].shape == (4, 3, 32, 32)
