"""SavedModel in TensorFlow, beside the embedder."""

import json

import pytest
import tensorflow as tf
import tiny
from exports import TEXTS, as_bytes, close, cosines, exported, of_bytes, of_page, tokens

from kakao_models import Embedder


@pytest.fixture(scope="module")
def saved_export(align, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved_model") / "out"
    return exported(align, folder, to="saved_model", input="uint8", normalize=True)


def test_saved_model(embedder, saved_export):
    folder, sheet = saved_export
    saved = tf.saved_model.load(str(folder / "1"))
    assert set(saved.signatures) == {"image_features", "text_features", "serving_default"}
    got = saved.signatures["image_features"](images=tf.constant(as_bytes()))["image_features"]
    close(got.numpy(), of_bytes(embedder, normalize=True))
    rows = of_page("saved_model.load", "saved_model", folder, images=as_bytes())["rows"]
    close(rows.numpy(), of_bytes(embedder, normalize=True))
    given = {name: tf.constant(value) for name, value in tokens(embedder, "int32").items()}
    close(saved.signatures["text_features"](**given)["text_features"].numpy(), embedder.texts(TEXTS, normalize=True))
    assert json.loads((folder / "1/assets/export.json").read_text())["normalized"] is True
    assert sheet["functions"]["text"] | {"check": None, "inputs": None, "outputs": None} == {
        "file": "1", "signature": "text_features", "check": None, "inputs": None, "outputs": None,
    }  # fmt: skip


@pytest.mark.slow
def test_saved_model_resizes_as_the_original_program(align_tf, tmp_path):
    options = dict(to="saved_model", input="picture", what="image", quantize="bfloat16")
    folder, _ = exported(align_tf, tmp_path / "out", **options)
    pictures = [tiny.picture(seed, 131, 77) for seed in range(2)]
    got = tf.saved_model.load(str(folder / "1")).signatures["image_features"](images=tf.constant(as_bytes(pictures)))
    assert cosines(got["image_features"].numpy(), Embedder(align_tf).images(pictures)).min() > 0.999


@pytest.mark.parametrize("make", [tiny.vit_folder, tiny.align_classifier_folder])
def test_saved_model_of_a_classifier_holds_its_labels(make, tmp_path):
    model = make(tmp_path / "model")
    folder, sheet = exported(model, tmp_path / "out", to="saved_model", input="uint8")
    saved = tf.saved_model.load(str(folder / "1"))
    got = saved.signatures["logits"](images=tf.constant(as_bytes()))["logits"]
    close(got.numpy(), of_bytes(Embedder(model), output="logits"))
    assert (folder / "1/assets/labels.txt").read_text().split() == sheet["labels"]


def test_tensorflow_serving(embedder, saved_export, files, example):
    """The folder as the server reads it: versions are its numbered subfolders; the request names signature and inputs."""
    folder, _ = saved_export
    module = example("tensorflow_serving")
    [version] = [path for path in folder.iterdir() if path.name.isdigit()]
    saved = tf.saved_model.load(str(version))

    def served(name, values):
        request = json.loads(json.dumps(module.request(folder, name, values)))
        run = saved.signatures[request["signature_name"]]
        specs = run.structured_input_signature[1]
        [output] = run(
            **{key: tf.constant(value, specs[key].dtype) for key, value in request["inputs"].items()}
        ).values()
        return output.numpy()

    close(served("image", {"images": module.inputs.pictures(folder, files)}), embedder.images(files, normalize=True))
    close(served("text", module.inputs.tokens(folder, TEXTS)), embedder.texts(TEXTS, normalize=True))
