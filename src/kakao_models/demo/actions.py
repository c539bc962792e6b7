"""The actions of the page's buttons, without the page: they take values of inputs and return values of outputs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from kakao_models.inference.labels import label_problems, only_label
from kakao_models.inference.pipelines import pipeline
from kakao_models.inference.relevance import read_least
from kakao_models.pixels.images import load_image
from kakao_models.pixels.limits import MAX_SHOWN_PIXELS
from kakao_models.search import Hit, SearchIndex, compose_query
from kakao_models.search.query import tokens_read
from kakao_models.vit.rollout import attention_rollout, patch_map, recorded_attention

from .catalogue import Catalogue
from .models import CLASSES, ZERO_SHOT, Models
from .photos import overlay
from .projection import project
from .render import bars, message, note, scatter, strip

MAX_CHARACTERS = 100_000  # of a text field
MAX_SENTENCES = 2_000  # labels times templates: half a minute of ALIGN-base on two cores
_READERS = 4  # threads
_SIDE = 1024  # of a picture that is shown

Loading = Callable[[str], None]


def read_lines(text: str | None, what: str) -> list[str]:
    """A text field's lines, without blanks and repetitions."""
    text = check_length(text, what)
    return list(dict.fromkeys(filter(None, map(str.strip, text.split("\n")))))


def check_length(text: str | None, what: str) -> str:
    """The text of a field.

    Raises:
        ValueError: it is longer than a page has to read.
    """
    text = text or ""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{what}: {len(text):,} characters are more than this page accepts ({MAX_CHARACTERS:,})")
    return text


def zero_shot(
    models: Models, photo: str | None, labels: str, templates: str, first: str, second: str, loading: Loading
) -> str:
    """Bars of one model's scores, or of two models'.

    Args:
        photo: path of the uploaded file.
        labels: one per line.
        templates: sentences with {}, one per line; none: transformers' default.
        second: name of the model to compare with, or nothing.
    """
    photo = _chosen(photo)
    names, sentences = read_lines(labels, "Labels"), read_lines(templates, "Templates")
    if not names:
        raise ValueError("Write the labels to choose from, one per line")
    if len(names) * max(1, len(sentences)) > MAX_SENTENCES:
        raise ValueError(
            f"{len(names):,} labels in {len(sentences):,} templates are more than the {MAX_SENTENCES:,} sentences "
            "that this page accepts. kakao-models classify has no such limit"
        )
    results, problems = [], {}
    for name in dict.fromkeys([first, second] if second else [first]):
        classify = models.get(ZERO_SHOT, name, loading)
        options = {"hypothesis_template": sentences} if sentences else {}
        results.append((name, classify(photo, candidate_labels=names, **options)))
        problems |= dict.fromkeys(label_problems(classify.embedder, names) + only_label(names))
    return bars(results) + "".join(note(f"{problem[0].upper()}{problem[1:]}.") for problem in problems)


def vit_classes(models: Models, photo: str | None, name: str, loading: Loading) -> tuple[str, Image.Image | None]:
    """Bars of a ViT's five best classes, and the photograph with the patches that they came from."""
    photo = _chosen(photo)
    classify = models.get(CLASSES, name, loading)
    model = classify.embedder.engine.model
    if classify.embedder.config.model_type != "vit" or not hasattr(model, "set_attn_implementation"):
        missing = note("Only a ViT in PyTorch can show which patches it looked at.")
        return bars([(name, classify(photo))]) + missing, None
    plain = pipeline(CLASSES, model, image_processor=classify.embedder.image_processor)  # its own modules have to run
    with recorded_attention(model) as layers:
        scores = plain(photo)
    heat = patch_map(attention_rollout(layers), model)[0]
    return bars([(name, scores)]), overlay(_as_seen(photo, classify.embedder.image_processor), heat)


def search(
    catalogue: Catalogue,
    text: str,
    text_weight: float,
    image: str | None,
    image_weight: float,
    words: str,
    words_weight: float,
    count: int,
    least: float,
    loading: Loading,
) -> tuple[str, list[str]]:
    """A strip of the results, and their paths. Results with a relevance below `least` are grey, where relevance is known.

    Args:
        image: path of the uploaded file.
        words: a second text, added or, with a weight below 0, taken away.
        count: how many photographs.
        least: a probability in 0..1.
    """
    read_least("Relevance", float(least))
    terms: dict[str | Path, float] = {Path(image): image_weight} if image else {}
    for term, weight in ((text, text_weight), (words, words_weight)):
        term = check_length(term, "Text").strip()
        terms[term] = terms.get(term, 0.0) + weight  # the same words twice are added up
    terms = {term: weight for term, weight in terms.items() if term and weight}
    if not terms:
        raise ValueError("Write what to search for, or choose an image; a weight of 0 leaves a part out")
    plus, minus = ({term: abs(w) for term, w in terms.items() if w * sign > 0} for sign in (1, -1))
    index = catalogue.open(loading)
    weights = {"text": 1, "image": 1}  # they are in the terms already
    query = compose_query(index.embedder, plus=plus, minus=minus, weights=weights)
    hits = index.search(query, int(count))
    if not hits:
        raise ValueError(f"{catalogue.name}: the index is empty")
    shown = [catalogue.thumbnail(hit.path) for hit in hits]
    fits, said = _relevances(index, hits, least, by_image=bool(image and image_weight))
    shares = [f" · relevance {share:.0%}" for share in fits] or [""] * len(hits)
    titles = [hit.caption or Path(hit.path).name for hit in hits]
    captions = [f"score {hit.score:.3f}{share} · {title}"[:120] for hit, share, title in zip(hits, shares, titles)]
    names = [f"Search with {Path(hit.path).name}" for hit in hits]
    results = said + strip(names, [uri for uri, _ in shown], captions, [share < least for share in fits])
    for term in terms:
        if isinstance(term, str) and (tokens := tokens_read(index.embedder, term)):
            results += note(f"“{term[:40]}…” is longer than {tokens} tokens: only its beginning is used.")
    return results + _lost([reason for _, reason in shown]), [hit.path for hit in hits]


def _relevances(index: SearchIndex, hits: list[Hit], least: float, by_image: bool) -> tuple[list[float], str]:
    """The relevance of each hit, none where it is not known, and what to say of them."""
    if by_image:
        return [], note("These are the most similar images. Relevance is known only for texts.")
    try:
        relevance = index.relevance
    except (OSError, ValueError) as error:
        return [], note(f"Relevance is not known: {error}")
    if relevance is None:
        return [], note(
            "Relevance is not known: the model has no calibration (kakao-models evaluate relevance makes one)."
        )
    fits = relevance([hit.score for hit in hits]).tolist()
    kept = sum(share >= least for share in fits)
    if not kept:
        return fits, message(
            f"Nothing fits: no photograph has a relevance of {least:.0%}. The nearest are shown in grey."
        )
    grey = "" if kept == len(fits) else f"; the other {len(fits) - kept} are grey"
    return fits, note(f"{kept} of {len(fits)} have a relevance of {least:.0%} or more{grey}.")


def found_picture(catalogue: Catalogue, paths: list[str], number: int) -> Image.Image:
    """The picture of a hit, to search with."""
    if not 0 <= number < len(paths or ()):
        raise ValueError("That image is no longer among the results: search again")
    return catalogue.picture(paths[number], _SIDE)


def embedding_map(catalogue: Catalogue, method: str, count: int, loading: Loading) -> str:
    """A map of at most `count` photographs of the index: a sample that is the same each time, if it has more."""
    hits, rows = catalogue.rows(int(count), loading)
    points, what = project(rows, method)
    with ThreadPoolExecutor(_READERS) as readers:
        shown = list(readers.map(catalogue.thumbnail, [hit.path for hit in hits]))
    names = [(hit.caption or Path(hit.path).name)[:120] for hit in hits]
    total = catalogue.open(loading).count
    sample = " (a random sample, the same each time)" if len(hits) < total else ""
    counts = note(f"{len(hits):,} of {total:,} photographs{sample}. {what}")
    return scatter(points, names, [uri for uri, _ in shown]) + counts + _lost([reason for _, reason in shown])


def _lost(reasons: list[str]) -> str:
    lost = list(filter(None, reasons))
    hint = "; start the page with --root FOLDER to show another folder" if any("folders" in r for r in lost) else ""
    return note(f"{len(lost):,} images can't be shown: {lost[0]}{hint}") if lost else ""


def _as_seen(photo: Path, processor) -> Image.Image:
    """The part of a photograph that a processor gives to the model, in the photograph's own proportions."""
    picture = load_image(photo, max_pixels=MAX_SHOWN_PIXELS, size_hint=(_SIDE, _SIDE))
    if processor.do_center_crop:
        width, height = picture.size
        shorter, crop = processor.size, processor.crop_size
        if "shortest_edge" in shorter:
            scale = min(width, height) / shorter["shortest_edge"]
            across, down = crop["width"] * scale, crop["height"] * scale
        else:
            across, down = width * crop["width"] / shorter["width"], height * crop["height"] / shorter["height"]
        left, top = (width - across) / 2, (height - down) / 2
        picture = picture.crop((round(left), round(top), round(left + across), round(top + down)))
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def _chosen(photo: str | None) -> Path:
    if not photo:
        raise ValueError("Choose an image first: drop one, or take one of the examples")
    return Path(photo)  # a path, regardless of how it looks: load_image would fetch a URL
