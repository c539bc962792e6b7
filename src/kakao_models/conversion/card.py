"""Model cards: of a conversion, and of what was published. Every figure comes from a result or from `PUBLISHED`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from kakao_models.align.config import AlignConfig
from kakao_models.evaluate.published import Published
from kakao_models.evaluate.report import markdown_report, model_index, model_index_of_published
from kakao_models.evaluate.results import Result
from kakao_models.vit.config import ViTConfig

_MODELS = {"align": "AlignModel", "classifier": "ViTForImageClassification", "backbone": "ViTModel"}
_TASKS = {
    "align": "zero-shot-image-classification",
    "classifier": "image-classification",
    "backbone": "image-feature-extraction",
    "efficientnet": "image-feature-extraction",
}


@dataclass(frozen=True)
class Card:
    """The contents of a model card.

    Attributes:
        title: its heading.
        name: name on the Hub or path that the examples load.
        use: "align", "classifier" (a ViT with classes), "backbone" (a ViT without) or "efficientnet".
        multi_label: whether the classes of a classifier exclude each other (False) or not (True).
        in_transformers: whether transformers' own class computes the same.
        metadata: `license`, `datasets`, `base_model`, `language`, `tags`, ... for the Hub.
        sections: heading → Markdown, in order; the first, "", stands above the examples.
        published: figures of others.
        results: results of `kakao-models evaluate` for this model.
    """

    title: str
    name: str
    use: str
    in_transformers: bool
    metadata: Mapping = field(default_factory=dict)
    sections: Mapping[str, str] = field(default_factory=dict)
    published: Sequence[Published] = ()
    results: Sequence[Result] = ()
    multi_label: bool = False

    def render(self, model_name: str) -> str:
        """The README.md: front matter and text.

        Args:
            model_name: the model's name in `model-index`.
        """
        front = {
            "library_name": "transformers" if self.in_transformers else "kakao-models",
            "pipeline_tag": _TASKS[self.use],
            **self.metadata,
        }
        entries = model_index_of_published(self.published)
        if self.results:
            entries += yaml.safe_load(model_index(self.results, model_name))["model-index"][0]["results"]
        if entries:
            front["model-index"] = [{"name": model_name, "results": entries}]
        sections = dict(self.sections)
        parts = [f"# {self.title}", sections.pop("", ""), "## How to use", examples(self)]
        parts += [f"## {heading}\n\n{text.strip()}" for heading, text in sections.items()]
        if self.published:
            parts += ["## Results", _published_table(self.published)]
        if self.results:
            parts += [
                "## Measured with kakao-models",
                markdown_report(self.results, published=False).replace("### ", "#### "),
            ]
        matter = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=110)
        return f"---\n{matter}---\n\n" + "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def in_transformers(config: AlignConfig | ViTConfig) -> bool:
    """Whether transformers' own class computes what the model computes.

    Its ALIGN has no Dense layer behind the image tower, and adds no input to the output of a stage's first block; its
    classifier of ViT passes the pre-logits by.
    """
    if config.model_type == "vit":
        return not (config.representation_size and config.num_labels)
    if config.model_type != "align" or config.use_visual_projection:
        return False
    blocks, vision = iter(config.vision_config.blocks()), config.vision_config
    first = []
    for repeat in vision.num_block_repeats:
        stage = [next(blocks) for _ in range(math.ceil(vision.depth_coefficient * repeat))]
        first.append(stage[0])
    return not any(block.skip for block in first)


_EXAMPLE = """\
import {module}
from PIL import Image

from kakao_models import {processor}, {prefix}{model}

model = {prefix}{model}.from_pretrained("{name}")
processor = {processor}.from_pretrained("{name}")
{inputs}
{forward}
{result}
"""
_ALIGN_INPUTS = """\
image, texts = Image.open("cat.jpg"), ["a photo of a cat", "a photo of a dog"]
inputs = processor(images=image, text=texts, return_tensors="{tensors}")"""
_VIT_INPUTS = 'inputs = processor(Image.open("cat.jpg"), return_tensors="{tensors}")'
_TOWER = """\
from kakao_models import AlignVisionModel

model = AlignVisionModel.from_pretrained("{name}")
"""
_PIPELINE = """\
from transformers import pipeline

classify = pipeline("{task}", model="{name}")
classify("cat.jpg"{labels})
"""
_FRAMEWORKS = {  # name → extra of this package, prefix of the classes, return_tensors, module with softmax and sigmoid
    "PyTorch": ("torch", "", "pt", "torch"),
    "JAX": ("flax", "Flax", "jax", "jax.nn"),
    "TensorFlow": ("tensorflow", "TF", "tf", "keras.ops"),
}


def examples(card: Card) -> str:
    """Instructions for running the model: a code block per framework, and transformers' pipeline where it serves the model."""
    if card.use == "efficientnet":
        return f"```python\n{_TOWER.format(name=card.name)}```"
    blocks = []
    for framework, (extra, prefix, tensors, module) in _FRAMEWORKS.items():
        forward = "output = model(**inputs)"
        if framework == "PyTorch":
            forward = f"with torch.inference_mode():\n    {forward}"
        scores = "sigmoid(output.logits)" if card.multi_label else "softmax(output.logits, -1)"
        result = {
            "align": f"probabilities = {module}.softmax(output.logits_per_image, -1)  # (images, texts)",
            "classifier": f"probabilities = {module}.{scores}  # (images, classes of model.config.id2label)",
            "backbone": "features = output.last_hidden_state[:, 0]  # (images, hidden_size)",
        }[card.use]
        inputs = _ALIGN_INPUTS if card.use == "align" else _VIT_INPUTS
        processor = "AlignProcessor" if card.use == "align" else "ViTImageProcessor"
        code = _EXAMPLE.format(
            module=module.split(".")[0], prefix=prefix, name=card.name, model=_MODELS[card.use], processor=processor,
            inputs=inputs.format(tensors=tensors), forward=forward, result=result,
        )  # fmt: skip
        blocks.append(f"{framework} (`pip install 'kakao-models[{extra}]'`):\n\n```python\n{code}```")
    if card.in_transformers and card.use != "backbone":
        labels = ', candidate_labels=["cat", "dog"]' if card.use == "align" else ""
        code = _PIPELINE.format(task=_TASKS[card.use], name=card.name, labels=labels)
        blocks.append(
            f"The same with transformers, which resizes with antialiasing, so scores differ slightly:\n\n```python\n{code}```"
        )
    return "\n\n".join(blocks)


def _published_table(figures: Sequence[Published]) -> str:
    rows = [
        f"| {figure.task}: {figure.dataset} | {figure.metric} | {figure.value} | {figure.model}{', ' * bool(figure.note)}{figure.note} |"
        for figure in figures
    ]
    provenances = dict.fromkeys((figure.provenance, figure.reproducible) for figure in figures)
    notes = [
        f"- {text}." + (" A correct port of the released checkpoint reproduces these." if right else "")
        for text, right in provenances
    ]
    return "\n".join(["| task | metric | percent | model |", "|---|---|---|---|", *rows, "", *notes])
