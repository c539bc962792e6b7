"""The web page: zero-shot classification, a ViT's classes, search, a map of embeddings.

    models = Models(["align-small"])
    build(models, Catalogue(models, folder)).launch(**LAUNCH)

`serve.py` does this for `kakao-models demo`.
"""

import functools
import logging
from collections.abc import Callable
from html import escape
from pathlib import Path

import gradio as gr

from kakao_models.checkpoint.hub import bundled_checkpoints
from kakao_models.demo import actions
from kakao_models.inference.pipelines import HYPOTHESIS_TEMPLATE
from kakao_models.pixels.images import ImageError, load_image

from .catalogue import Catalogue
from .models import Models
from .photos import BUNDLED, bundled_labels, bundled_photos, data_uri
from .projection import METHODS
from .render import message, note, strip

MAX_UPLOAD = 20 * 2**20  # bytes
WAITING = 32  # requests; one runs at a time
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # nothing is fetched
_MONO = ("ui-monospace", "monospace")

_NO_VIT = (
    "No ViT ships inside the package. A Hub id is downloaded when it is first used (kakaobrain/vit-large-patch16-384: "
    "1.2 GB). Without a network, give the folder of a checkpoint that you have."
)

_SMALL = (
    "align-small is a small model inside the package, to try things with. For real use {take} kakaobrain/align-base, which "
    "is downloaded once (0.7 GB)."
)
QUERIES = ("snow on a mountain", "a dog looking out of a window", "a man with a camera")

# A click on a photograph of a strip, told to Python with its number.
_CHOOSE = """element.addEventListener("click", event => {
  const button = event.target.closest("button[data-number]");
  if (button) trigger("click", {number: Number(button.dataset.number)});
});"""

_PROGRESS = gr.Progress()  # gradio finds it in a signature
_log = logging.getLogger(__name__)

_THEME = gr.themes.Default(
    primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=_FONT, font_mono=_MONO
).set(  # gradio's own greys are too faint to read
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
)

# Arguments of `launch`: only this computer, no public link, no files except those of the page itself.
LAUNCH = {
    "theme": _THEME,
    "css_paths": Path(__file__).parent / "style.css",
    "allowed_paths": [str(BUNDLED)],
    "max_file_size": MAX_UPLOAD,
    "share": False,
    "ssr_mode": False,
    "footer_links": ["api", "gradio"],
}


def build(models: Models, catalogue: Catalogue) -> gr.Blocks:
    """The page, to be launched with `LAUNCH`.

    Args:
        models: what may run; the first that it offers is chosen.
        catalogue: what search and map are of.
    """
    with gr.Blocks(title="kakao-models", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(
            "<h1>kakao-models</h1><p>ALIGN and COYO-ViT: images and words in one space. "
            "Everything runs on the computer that serves this page.</p>",
            elem_classes="km-head",
        )
        with gr.Tabs():
            with gr.Tab("Zero-shot"):
                _zero_shot(page, models)
            with gr.Tab("ViT"):
                _vit(models)
            with gr.Tab("Search"):
                _search(catalogue)
            with gr.Tab("Map"):
                _map(catalogue)
    # One at a time: a model fills all cores, and `Embedder` is not for two threads.
    return page.queue(default_concurrency_limit=1, max_size=WAITING)


def _zero_shot(page: gr.Blocks, models: Models) -> None:
    with gr.Row():
        with gr.Column():
            photo = _photo("Photograph", value=str(bundled_photos()[0]))
            example = _examples(photo)
        with gr.Column():  # the scores first: they are seen without scrolling
            labels = gr.Textbox("\n".join(bundled_labels()[:10]), label="Labels, one per line", lines=4, max_lines=5)
            button = gr.Button("Classify", variant="primary")
            result = gr.HTML(label="Scores")
            templates = gr.Textbox(
                HYPOTHESIS_TEMPLATE, label="Templates, one per line; {} is the label", lines=1, max_lines=5
            )
            with gr.Row():
                first = _model(models, "Model", models.offered[0])
                second = _model(models, "Compare with", None)
            if "align-small" in models.offered:
                gr.HTML(note(_SMALL.format(take="type" if models.others else "choose")))

    def classify(photo, labels, templates, first, second, progress=_PROGRESS):
        return actions.zero_shot(models, photo, labels, templates, first, second, _loading(progress))

    inputs = [photo, labels, templates, first, second]
    shown = {"concurrency_id": "model", "show_progress_on": result}
    button.click(_reporting(classify), inputs, [result], api_name="zero_shot", **shown)
    for chosen in (example.then, photo.upload):
        chosen(_reporting(classify), inputs, [result], api_visibility="private", **shown)
    photo.clear(lambda: "", None, result, api_visibility="private", queue=False)
    if models.offered[0] in bundled_checkpoints():  # others might have to be downloaded first
        page.load(_reporting(classify), inputs, [result], api_visibility="private", **shown)


def _vit(models: Models) -> None:
    with gr.Row():
        with gr.Column():
            photo = _photo("Photograph")
            example = _examples(photo)
        with gr.Column():
            name = gr.Textbox(models.vit, label="ViT: a Hub id or a folder", max_lines=1, interactive=models.others)
            if models.others:
                gr.HTML(note(_NO_VIT))
            button = gr.Button("Classify", variant="primary")
            result = gr.HTML(label="Classes")
            seen = gr.Image(
                label="Where the answer came from: attention rollout", interactive=False, buttons=["fullscreen"],
                alt_text="The photograph in grey, with a glow where the model's attention was",
            )  # fmt: skip

    def classify(photo, name, progress=_PROGRESS):
        return actions.vit_classes(models, photo, name, _loading(progress))

    button.click(
        _reporting(classify, 1), [photo, name], [result, seen],
        api_name="vit", concurrency_id="model", show_progress_on=result,
    )  # fmt: skip
    for chosen in (example.then, photo.upload, photo.clear):  # what is shown is of the photograph before
        chosen(lambda: ("", None), None, [result, seen], api_visibility="private", queue=False)


def _search(catalogue: Catalogue) -> None:
    paths = gr.State([])
    with gr.Row(elem_classes="km-search"):  # style.css places the columns: results beside the form, or below the button
        with gr.Column(elem_classes="km-ask"):
            text = gr.Textbox(label="Text", placeholder=QUERIES[0], max_lines=3, lines=1)
            with gr.Row():
                queries = [gr.Button(query, size="sm") for query in QUERIES]
            least = gr.Slider(0, 1, 0.5, step=0.05, label="Relevance: results below this probability are grey")
            button = gr.Button("Search", variant="primary")
        with gr.Column(elem_classes="km-found"):
            hint = note(f"Results from {catalogue.name} appear here. Click one to search with it.")
            results = gr.HTML(hint, js_on_load=_CHOOSE)
        with gr.Column(elem_classes="km-more"):
            count = gr.Slider(1, 48, 12, step=1, label="Number of results")
            text_weight = gr.Slider(0, 4, 2, step=0.1, label="Weight of the text")
            words = gr.Textbox(label="Second text", placeholder="people", max_lines=3, lines=1)
            words_weight = gr.Slider(-4, 4, -1, step=0.1, label="Weight of the second text (negative: less of it)")
            image = _photo("Image", 220)
            image_weight = gr.Slider(0, 4, 1, step=0.1, label="Weight of the image")

    def search(text, text_weight, image, image_weight, words, words_weight, count, least, progress=_PROGRESS):
        return actions.search(
            catalogue, text, text_weight, image, image_weight, words, words_weight, count, least, _loading(progress)
        )

    def choose(paths: list[str], event: gr.EventData):
        try:
            return actions.found_picture(catalogue, paths, int(event.number)), "", ""
        except (OSError, ValueError) as error:  # what was found stays on the page
            raise gr.Error(escape(_reason(error))) from error

    inputs = [text, text_weight, image, image_weight, words, words_weight, count, least]
    shown = {"concurrency_id": "model", "show_progress_on": results}
    gr.on(
        [button.click, text.submit, words.submit, least.release], _reporting(search, 1), inputs, [results, paths],
        api_name="search", **shown,
    )  # fmt: skip
    for query in queries:  # of the text alone
        query.click(
            lambda text: (text, None, ""), query, [text, image, words], api_visibility="private", queue=False
        ).then(_reporting(search, 1), inputs, [results, paths], api_visibility="private", **shown)
    results.click(choose, paths, [image, text, words], api_visibility="private", show_progress_on=image).success(
        _reporting(search, 1), inputs, [results, paths], api_visibility="private", **shown
    )  # by the image alone


def _map(catalogue: Catalogue) -> None:
    with gr.Row():
        method = gr.Radio(METHODS, value=METHODS[0], label="Projection")
        count = gr.Slider(10, 500, 200, step=10, label="Largest number of photographs")
    button = gr.Button("Draw", variant="primary")
    drawn = gr.HTML(note(f"A map of {catalogue.name}: similar photographs lie together."))

    def draw(method, count, progress=_PROGRESS):
        return actions.embedding_map(catalogue, method, count, _loading(progress))

    button.click(
        _reporting(draw), [method, count], [drawn],
        api_name="map", concurrency_id="model", show_progress_on=drawn,
    )  # fmt: skip


def _photo(label: str, height: int = 300, value: str | None = None) -> gr.Image:
    photo = gr.Image(
        value, label=label, type="filepath", format="png", sources=["upload", "clipboard"], height=height,
        buttons=["fullscreen"],
    )  # fmt: skip
    # gradio would open the file itself, by every decoder that PIL has; pixels/images.py reads it safely.
    photo.preprocess = lambda payload: None if payload is None else payload.path
    keep = photo.async_move_resource_to_block_cache

    async def keep_files(path: str | None):  # gradio would fetch an address that a request names, however large
        if path and "://" in path:
            raise gr.Error("Send the image itself, not its URL")
        return await keep(path)

    photo.async_move_resource_to_block_cache = keep_files
    return photo


def _examples(photo: gr.Image):
    """The photographs inside the package, to be chosen by a click; returns the event, to act on the choice."""
    photos = bundled_photos()
    pictures = [data_uri(load_image(path), 160) for path in photos]

    def choose(event: gr.EventData) -> str:
        return str(photos[int(event.number) % len(photos)])

    examples = gr.HTML(strip([f"Example: {path.stem}" for path in photos], pictures), js_on_load=_CHOOSE)
    return examples.click(choose, None, photo, api_visibility="private", queue=False)


def _model(models: Models, label: str, value: str | None) -> gr.Dropdown:
    choices = models.offered if value else [("none", ""), *models.offered]
    info = "or type a Hub id, or a folder" if models.others else None
    return gr.Dropdown(choices, value=value or "", label=label, info=info, allow_custom_value=models.others)


def _loading(progress: gr.Progress) -> Callable[[str], None]:
    return lambda name: progress(None, desc=f"Loading {name}")


def _reporting(run: Callable, further: int = 0) -> Callable:
    """`run`, whose first output is HTML: an error message takes its place, and None that of the `further` outputs."""

    @functools.wraps(run)  # gradio finds the progress bar in the signature
    def reporting(*inputs, **others):
        try:
            return run(*inputs, **others)
        except (OSError, ValueError, ImportError, MemoryError) as error:
            reason = _reason(error)
        except Exception:
            _log.exception("an action of the page failed")
            reason = "That did not work, for a reason that this page does not know. The server's log has it."
        return (message(reason), *[None] * further) if further else message(reason)

    return reporting


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):  # the path of an upload stays private
        return f"{Path(error.source).name}: {error.reason}"
    return str(error) or type(error).__name__
