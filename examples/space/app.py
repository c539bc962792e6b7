# /// script
# requires-python = ">=3.11"
# dependencies = ["kakao-models[torch,demo]"]
# [tool.uv.sources]
# kakao-models = { path = "../..", editable = true }
# ///

"""Runs the demo page of kakao-models as a Hugging Face Space."""

import tempfile
from pathlib import Path

from kakao_models.demo.app import LAUNCH, build
from kakao_models.demo.catalogue import Catalogue
from kakao_models.demo.models import Models

models = Models(["kakaobrain/align-base", "align-small"], "kakaobrain/vit-large-patch16-384", others=False)
page = build(models, Catalogue(models, Path(tempfile.mkdtemp())))

if __name__ == "__main__":
    page.launch(**LAUNCH)
