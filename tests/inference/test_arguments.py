"""What users of `transformers.pipeline` pass, argument by argument."""

import inspect
import shutil

import numpy as np
import pytest
import tiny
import torch
import transformers

from kakao_models import AlignModel, Embedder, ViTModel, pipeline
from kakao_models.inference.arguments import TRANSFORMERS_ARGUMENTS, device_name, dtype_name, translated

LABELS = ["cat", "dog"]
PICTURE = tiny.picture(0)


def test_every_argument_of_transformers_is_known():
    theirs = set(inspect.signature(transformers.pipeline).parameters) - {"task", "model", "kwargs"}
    assert theirs <= {*inspect.signature(Embedder).parameters, *TRANSFORMERS_ARGUMENTS}


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": torch.float32, "device": torch.device("cpu"), "use_fast": True, "num_workers": 0},
        {"device": -1, "trust_remote_code": False, "config": None, "framework": "pt", "local_files_only": True},
        {"device_map": "cpu", "model_kwargs": {"dtype": "float32", "low_cpu_mem_usage": True}},
        {"device_map": {"": "cpu"}, "device": None, "model_kwargs": None, "token": None, "revision": None},
        {"device_map": {"vision_model": "cpu", "text_model": torch.device("cpu")}, "video_processor": None},
    ],
)
def test_what_is_taken_changes_nothing_else(align, arguments):
    expected = pipeline("zero-shot-image-classification", align)(PICTURE, LABELS)
    assert pipeline("zero-shot-image-classification", align, **arguments)(PICTURE, LABELS) == expected


def test_processors_by_name_and_by_transformers_names(align, vit):
    expected = pipeline(model=align)(PICTURE, LABELS)
    named = pipeline(model=align, tokenizer=align, image_processor=align, num_workers=1)
    assert named(PICTURE, LABELS) == pipeline(model=align, processor=align)(PICTURE, LABELS) == expected
    assert named(images=[PICTURE], candidate_labels=LABELS, num_workers=2, batch_size=1) == [expected]
    processor = Embedder(vit).image_processor
    processor.size = {"height": 32, "width": 32}
    processor.do_rescale = False
    changed = pipeline("image-classification", vit, feature_extractor=processor)
    assert changed.embedder.image_processor is processor
    assert changed(PICTURE) == pipeline("image-classification", vit, image_processor=processor)(PICTURE)
    assert changed(PICTURE) != pipeline("image-classification", vit)(PICTURE)


@pytest.mark.parametrize("arguments", [{"dtype": torch.bfloat16}, {"model_kwargs": {"dtype": "bfloat16"}}])
def test_a_dtype_of_torch(align, arguments):
    ours = pipeline("zero-shot-image-classification", align, **arguments)
    assert ours.dtype is torch.bfloat16 and ours.device == torch.device("cpu")
    rows, exact = ours.embedder.images([PICTURE]), Embedder(align).images([PICTURE])
    assert 0 < np.abs(rows - exact).max() < 0.1 * np.abs(exact).max()
    model = AlignModel.from_pretrained(align)
    assert Embedder(model, dtype=torch.float16).dtype is torch.float16


def test_torch_dtype_is_deprecated(align):
    with pytest.warns(FutureWarning, match="torch_dtype is deprecated: use dtype") as warned:
        assert Embedder(align, torch_dtype=torch.float32).dtype is torch.float32
    assert warned[0].filename == __file__


def test_the_task_is_read_from_the_model(align, vit):
    assert pipeline(model=align).task == "zero-shot-image-classification"
    assert pipeline(model=vit, top_k=2).task == "image-classification"
    assert pipeline(model=Embedder(ViTModel.from_pretrained(vit), processor=vit)).task == "image-feature-extraction"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trust_remote_code": True}, "trust_remote_code is not supported: no code of a checkpoint"),
        ({"config": "align-small"}, r"config is not supported: .*AlignModel\.from_pretrained\(name, config=config\)"),
        ({"pipeline_class": object}, "pipeline_class is not supported: a pipeline is chosen by its task"),
        ({"video_processor": "x"}, "video_processor is not supported: .*image_processor="),
        ({"code_revision": "main"}, "code_revision is not supported"),
        ({"device_map": "balanced"}, "device_map='balanced' is not supported: a model runs on one device"),
        ({"device_map": {"a": 0, "b": 1}}, "a model runs on one device"),
        ({"device_map": "cpu", "device": "cpu"}, "device_map and device are both given: pass device only"),
        (
            {"dtype": "float32", "model_kwargs": {"dtype": "float32"}},
            "dtype is given as an argument and in model_kwargs",
        ),
        (
            {"model_kwargs": {"attn_implementation": "eager"}},
            r"'attn_implementation' is not supported\. Pass a model obj",
        ),
        ({"feature_extractor": "a", "image_processor": "b"}, "pass image_processor only"),
        ({"dtype": torch.int8}, "dtype 'int8'"),
        ({"device": torch.device("cuda:99")}, "device 'cuda:99' can't be used"),
        ({"framework": "mxnet"}, "expected one of torch, tf, flax"),
    ],
)
def test_what_is_not_taken_is_refused_with_what_to_do(align, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline("zero-shot-image-classification", align, **arguments)


def test_a_missing_model_and_an_unknown_argument(align):
    with pytest.raises(ValueError, match="model: pass a checkpoint, such as 'kakaobrain/align-base'"):
        pipeline("image-classification")
    with pytest.raises(TypeError, match="unexpected keyword argument 'devise'"):
        Embedder(align, devise="cpu")


@pytest.mark.parametrize("framework", ["pt", "tf"])
def test_a_cache_folder_without_a_network(align, tmp_path, framework):
    snapshot = tmp_path / "models--owner--tiny/snapshots/abc"
    shutil.copytree(align, snapshot)
    (tmp_path / "models--owner--tiny/refs").mkdir()
    (tmp_path / "models--owner--tiny/refs/main").write_text("abc")
    where = {"model_kwargs": {"cache_dir": tmp_path}, "local_files_only": True, "framework": framework}
    run = pipeline(model="owner/tiny", **where)
    assert [entry["label"] for entry in run(PICTURE, LABELS)] == [
        entry["label"] for entry in pipeline(model=align)(PICTURE, LABELS)
    ]
    assert type(run.embedder.image_processor).__name__ == "AlignImageProcessor" and len(run.embedder.tokenizer) > 50
    with pytest.raises(OSError, match="owner/other"):
        pipeline(model="owner/other", **where)


def test_what_it_is_can_be_read(align, vit):
    embedder = Embedder(align)
    text = f"Embedder({align!r}, dim=16, engine='image: torch, text: torch', device='cpu', dtype='float32')"
    assert repr(embedder) == text
    run = pipeline("zero-shot-image-classification", embedder, top_k=2)
    assert repr(run) == f"ZeroShotImageClassification({text}, top_k=2)"
    model = Embedder(AlignModel.from_pretrained(align))
    assert model.device == torch.device("cpu") and "engine='TorchEngine', device='cpu'" in repr(model)


@pytest.mark.parametrize(("framework", "device"), [("tf", "CPU:0"), ("jax", "cpu:0")])
def test_devices_and_dtypes_of_other_frameworks(vit, framework, device):
    if framework == "jax":
        pytest.importorskip("flax")
    run = pipeline("image-classification", vit, framework=framework, dtype=torch.bfloat16)
    assert str(run.device) == device and str(run.dtype) == "bfloat16"
    again = Embedder(vit, framework=framework, device=run.device, dtype=run.dtype)
    assert str(again.device) == device and str(again.dtype) == "bfloat16"


def test_names_of_devices_and_dtypes():
    assert translated({"dtype": None, "device": None}) == {"dtype": None, "device": "auto"}
    assert [dtype_name(dtype) for dtype in (torch.float16, np.float32, np.dtype("float16"), "torch.bfloat16")] == [
        "float16", "float32", "float16", "bfloat16",
    ]  # fmt: skip
    assert [device_name(device) for device in (torch.device("cuda", 1), 0, "mps", -1)] == ["cuda:1", 0, "mps", -1]
