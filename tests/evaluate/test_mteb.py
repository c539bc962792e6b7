"""mteb's own offline tasks, on the numbers of transformers' AlignModel. Skipped where mteb is not installed."""

import json
from itertools import chain

import numpy as np
import pytest
import tiny
from PIL import Image

mteb = pytest.importorskip("mteb", reason="pip install 'kakao-models[mieb]'")
torch = pytest.importorskip("torch", reason="compared with PyTorch")

from mteb.mocks import ALL_MOCK_TASK_TEST_GRID  # noqa: E402
from mteb.models.abs_encoder import AbsEncoder  # noqa: E402

from kakao_models import Embedder  # noqa: E402
from kakao_models.evaluate.mteb import MtebEncoder, run_tasks, task_names  # noqa: E402

TASKS = [
    task for task in ALL_MOCK_TASK_TEST_GRID
    if "image" in task.metadata.modalities and set(task.metadata.modalities) <= {"image", "text"}
]  # fmt: skip


def fresh() -> list:
    """The tasks with their first random images: running a task draws the next ones."""
    return [type(task)() for task in TASKS]


class Transformers(AbsEncoder):
    """What mteb's class for ALIGN computes, with transformers' model, batch by batch."""

    def __init__(self, folder: str, meta):
        from transformers import AlignModel, BertTokenizer, EfficientNetImageProcessor

        self.mteb_model_meta = meta
        self.model = AlignModel.from_pretrained(folder)
        self.processor, self.tokenizer = (
            kind.from_pretrained(folder) for kind in (EfficientNetImageProcessor, BertTokenizer)
        )

    @torch.no_grad()
    def encode(self, inputs, **kwargs):
        rows = []
        for batch in inputs:
            parts = []
            if "image" in batch:
                pixels = self.processor([image.convert("RGB") for image in batch["image"]], return_tensors="pt")
                parts.append(self.model.get_image_features(**pixels).pooler_output)
            if "text" in batch:
                tokens = self.tokenizer(batch["text"], padding=True, truncation=True, return_tensors="pt")
                parts.append(self.model.get_text_features(**tokens).pooler_output)
            # where mteb adds the embeddings of both as they are, the ALIGN paper scales them first
            rows.append(parts[0] if len(parts) == 1 else sum(map(torch.nn.functional.normalize, parts)))
        return torch.cat(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    # transformers leaves out the first residual of a stage, which the original has where a stage's widths are equal. They are
    # in no published size, but they are at a quarter of the width.
    vision = tiny.align_config().vision_config.to_dict() | {"width_coefficient": 0.5, "out_channels": [16, 24, 32]}
    return tiny.align_folder(tmp_path_factory.mktemp("mteb") / "align", config=tiny.align_config(vision_config=vision))


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, float]:
    reference = Transformers(folder, MtebEncoder(folder).mteb_model_meta)
    options = dict(cache=None, encode_kwargs={"batch_size": 32}, co2_tracker=False)
    found = {t.metadata.name: mteb.evaluate(reference, t, **options).task_results[0].get_score() for t in fresh()}
    return {name: score for name, score in found.items() if np.isfinite(score)}


@pytest.mark.parametrize(
    "options",
    [{}, {"engine": "openvino"}, {"framework": "tf"}, {"framework": "flax"}],
    ids=str,
)
def test_mock_tasks_give_mtebs_numbers_to_the_last_digit(options, folder, expected):
    found = run_tasks(Embedder(folder, **options), fresh())
    assert len(expected) >= 12 and found.metrics == expected
    assert found.settings["mteb"] == mteb.__version__ and found.model == "align"
    json.loads(found.to_json())


class Batches(list):
    """A data loader."""

    @property
    def dataset(self):
        return type("Dataset", (), {"features": set(chain(*self))})


def test_a_query_of_image_and_text_is_the_sum_of_both_at_length_1(align):
    encoder, pictures, texts = MtebEncoder(align), [tiny.picture(n) for n in range(3)], ["a cat", "the sea", "a dog"]
    fused = encoder.encode(
        Batches([{"image": pictures[:2], "text": texts[:2]}, {"image": pictures[2:], "text": texts[2:]}])
    )
    parts = encoder.embedder.images(pictures, normalize=True), encoder.embedder.texts(texts, normalize=True)
    assert np.array_equal(fused, parts[0] + parts[1])
    seen = pictures[0].copy()
    seen.putalpha(Image.new("L", seen.size, 40))  # mteb drops alpha
    alone = encoder.encode(Batches([{"image": [seen]}]))
    assert np.array_equal(alone, encoder.embedder.images(pictures[:1]))
    with pytest.raises(ValueError, match="mteb gave audio, expected text or image"):
        encoder.encode(Batches([{"audio": [1]}]))


def test_models_and_tasks_that_do_not_fit(vit, align):
    with pytest.raises(ValueError, match="has no text tower"):
        MtebEncoder(vit)
    with pytest.raises(ValueError, match="has no task 'CIFAR11'"):
        run_tasks(Embedder(align), ["CIFAR11"])
    with pytest.raises(ValueError, match="got no tasks"):
        run_tasks(Embedder(align), [])
    audio = next(task for task in ALL_MOCK_TASK_TEST_GRID if "audio" in task.metadata.modalities)
    with pytest.raises(ValueError, match="expected images and texts"):
        run_tasks(Embedder(align), [audio])
    assert "MSCOCOT2IRetrieval" in task_names("published") and task_names("A,B") == ["A", "B"]


def test_the_command_puts_published_results_beside(command, align, monkeypatch):
    mock = next(task for task in fresh() if "ZeroShot" in task.metadata.name)
    monkeypatch.setattr("mteb.get_task", lambda name: mock if name == "Mock" else pytest.fail(name))
    monkeypatch.setitem(mock.metadata.__dict__, "name", "CIFAR10ZeroShot")
    code, out, err = command("evaluate", "mieb", "--tasks", "Mock", "-m", align)
    assert code == 0, err
    assert "### mieb: MIEB" in out and "| CIFAR10ZeroShot |" in out and "| 75.59 |" in out
