"""PyTorch's exported programs, beside the embedder."""

import json

import torch
from exports import PICTURES, as_bytes, close, cosines, exported, of_bytes, of_page, pixel_values, tokens

from kakao_models import Embedder


def test_pt2(align, embedder, tmp_path):
    folder, sheet = exported(align, tmp_path / "out", to="pt2", quantize="float16")
    extra = {"export.json": ""}
    image = torch.export.load(folder / "image.pt2", extra_files=extra).module()
    got = image(pixel_values=torch.from_numpy(pixel_values(embedder)))["image_features"].numpy()
    assert cosines(got, embedder.images(PICTURES)).min() > 0.9999
    assert json.loads(extra["export.json"])["quantize"] == "float16"
    text = torch.export.load(folder / "text.pt2").module()
    given = {name: torch.from_numpy(value) for name, value in tokens(embedder, "int64", ["a cat"]).items()}
    assert cosines(text(**given)["text_features"].numpy(), embedder.texts(["a cat"])).min() > 0.9999


def test_pt2_of_the_features_of_a_vit(vit, tmp_path):
    folder, _ = exported(vit, tmp_path / "out", to="pt2", what="image", input="uint8", normalize=True)
    run = torch.export.load(folder / "image.pt2").module()
    rows = of_page("torch.export.load", "pt2", folder, images=as_bytes())["rows"]
    close(rows.numpy(), of_bytes(Embedder(vit), normalize=True))
    close(run(images=torch.from_numpy(as_bytes()))["image_features"].numpy(), of_bytes(Embedder(vit), normalize=True))
