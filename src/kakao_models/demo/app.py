"""The web page: zero-shot classification, a ViT's classes, search, a map of embeddings.

    page = build(["align-tiny"])
    page.launch(**LAUNCH)

`serve` is what `kakao-models demo` calls.
"""

import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from kakao_models.inference.pipelines import HYPOTHESIS_TEMPLATE

from . import actions
from .models import Models
from .photos import BUNDLED, bundled_labels, bundled_photos, data_uri, thumbnail
from .render import message, strip

DEFAULT_MODEL = "align-tiny"
DEFAULT_VIT = "kakaobrain/vit-large-patch16-384"
MAX_UPLOAD = 20 * 2**20  # bytes
WAITING = 32  # requests; one runs at a time
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # nothing is fetched
_MONO = ("ui-monospace", "monospace")

# A click on a photograph of a strip, told to Python with its number.
_CHOOSE = """element.addEventListener("click", event => {
  const button = event.target.closest("button[data-number]");
  if (button) trigger("click", {number: Number(button.dataset.number)});
});"""

_log = logging.getLogger(__name__)

# Arguments of `launch`: of this computer alone, no public link, no file served but those of the page itself.
LAUNCH = {
    "theme": gr.themes.Default(primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=_FONT, font_mono=_MONO),
    "css_paths": Path(__file__).parent / "style.css",
    "allowed_paths": [str(BUNDLED)],
    "max_file_size": MAX_UPLOAD,
    "share": False,
    "ssr_mode": False,
    "footer_links": ["api", "gradio"],
}


def build(models: Models, vit: str = DEFAULT_VIT) -> gr.Blocks:
    """The page, to be launched with `LAUNCH`.

    Args:
        models: what may run; the first that it offers is chosen.
        vit: the ViT that is filled in.
    """
    with gr.Blocks(title="kakao-models", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(
            "<h1>kakao-models</h1><p>ALIGN and COYO-ViT: images and words in one space. "
            "Everything runs on the computer that serves this page.</p>",
            elem_classes="km-head",
        )
        with gr.Tabs():
            with gr.Tab("Zero-shot"):
                _zero_shot(models)
            with gr.Tab("ViT classes"):
                _vit(models, vit)
    # One at a time: a model fills all cores, and `Embedder` is not for two threads.
    return page.queue(default_concurrency_limit=1, max_size=WAITING)


def _zero_shot(models: Models) -> None:
    with gr.Row():
        with gr.Column():
            photo = _photo("Photograph")
            _examples(photo)
        with gr.Column():
            labels = gr.Textbox("\n".join(bundled_labels()[:8]), label="Labels, one a line", lines=8, max_lines=12)
            templates = gr.Textbox(
                HYPOTHESIS_TEMPLATE, label="Templates, one a line; {} is the label", lines=1, max_lines=5
            )
            with gr.Row():
                first = _model(models, "Model", models.offered[0])
                second = _model(models, "Compare with", None)
            button = gr.Button("Classify", variant="primary")
            said, result = gr.HTML(), gr.HTML(label="Scores")

    def classify(photo, labels, templates, first, second, progress=gr.Progress()):
        return actions.zero_shot(models, photo, labels, templates, first, second, _loading(progress))

    button.click(
        _told(classify, 1), [photo, labels, templates, first, second], [said, result],
        api_name="zero_shot", concurrency_id="model", show_progress_on=result,
    )  # fmt: skip


def _vit(models: Models, vit: str) -> None:
    with gr.Row():
        with gr.Column():
            photo = _photo("Photograph")
            _examples(photo)
        with gr.Column():
            name = gr.Textbox(vit, label="ViT: a Hub id or a folder", max_lines=1)
            gr.HTML(
                '<p class="km-note">No ViT ships inside the package. A Hub id is downloaded when it is first used '
                f"({DEFAULT_VIT}: 1.2 GB); without a network, give the folder of a checkpoint that you have.</p>"
            )
            button = gr.Button("Classify", variant="primary")
            said, result = gr.HTML(), gr.HTML(label="Classes")
            seen = gr.Image(
                label="Where the answer came from: attention rollout", interactive=False, buttons=["fullscreen"],
                alt_text="The photograph in grey, with a glow where the model's attention was", visible=True,
            )  # fmt: skip

    def classify(photo, name, progress=gr.Progress()):
        return actions.vit_classes(models, photo, name, _loading(progress))

    button.click(
        _told(classify, 2), [photo, name], [said, result, seen],
        api_name="vit", concurrency_id="model", show_progress_on=result,
    )  # fmt: skip


def _photo(label: str) -> gr.Image:
    photo = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], height=300, buttons=["fullscreen"])
    # gradio would open the file itself, by every decoder that PIL has; data/images.py reads it safely.
    photo.preprocess = lambda payload: None if payload is None else payload.path
    return photo


def _examples(photo: gr.Image) -> None:
    photos = bundled_photos()
    pictures = [data_uri(thumbnail(path, 160)) for path in photos]

    def choose(event: gr.EventData) -> str:
        return str(photos[int(event.number) % len(photos)])

    examples = gr.HTML(strip([f"Example: {path.stem}" for path in photos], pictures), js_on_load=_CHOOSE)
    examples.click(choose, None, photo, api_visibility="private", queue=False)


def _model(models: Models, label: str, value: str | None) -> gr.Dropdown:
    choices = models.offered if value else [("none", ""), *models.offered]
    info = "or type a Hub id, or a folder" if models.others else None
    return gr.Dropdown(choices, value=value or "", label=label, info=info, allow_custom_value=models.others)


def _loading(progress: gr.Progress) -> Callable[[str], None]:
    return lambda name: progress(None, desc=f"Loading {name}")


def _told(run: Callable, outputs: int) -> Callable:
    """`run` with a message in front of its outputs: empty, or what went wrong, and then the outputs are empty."""

    @functools.wraps(run)  # gradio finds the progress bar in the signature
    def told(*inputs, **others):
        try:
            values = run(*inputs, **others)
        except (OSError, ValueError, ImportError, MemoryError) as error:
            return message(str(error) or type(error).__name__), *[None] * outputs
        except gr.Error:
            raise
        except Exception:
            _log.exception("an action of the page failed")
            return message("That did not work, for a reason that this page does not know. The server's log has it."), *[
                None
            ] * outputs
        return "", *(values if isinstance(values, tuple) else (values,))

    return told
