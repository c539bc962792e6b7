"""Embeddings of labels, computed once.

Axes: L labels  D width of an embedding
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from string import Formatter
from typing import Protocol

import numpy as np

from kakao_models.inference.embedder import Embedder, l2_normalize
from kakao_models.warn import warn

_NAMED = 5  # labels that a warning names


class TextEmbedder(Protocol):
    """An `Embedder` of an ALIGN, or another object that embeds texts as it does."""

    def texts(self, texts: Iterable[str], *, normalize: bool, batch_size: int | None) -> np.ndarray: ...


class LabelEmbeddings:
    """Label → the embedding of the sentences that templates make of it, kept for the next call.

    With several templates it is the mean of the sentences' normalised embeddings, normalised again (prompt
    ensembling: Radford et al. 2021, section 3.1.4).

    Args:
        embedder: of an ALIGN. Its weights must not change between calls.
        max_labels: as many embeddings are kept, the most recently used ones.
    """

    def __init__(self, embedder: TextEmbedder, max_labels: int = 20_000):
        self._embedder = embedder
        self._max_labels = max_labels
        self._rows: OrderedDict[tuple[tuple[str, ...], str], np.ndarray] = OrderedDict()
        self._last: tuple = (None, None)  # labels and templates of the last call, and what it returned

    def __call__(self, labels: Iterable[str], templates: Iterable[str], batch_size: int | None = None) -> np.ndarray:
        """(L, D), each row of length 1. Sentences of more than 64 tokens are cut.

        Raises:
            ValueError: no labels, or a template that doesn't say where the label goes.
        """
        labels, templates = check_labels(labels), check_templates(templates)
        if self._last[0] == (labels, templates):
            return self._last[1]
        missing = [label for label in dict.fromkeys(labels) if (templates, label) not in self._rows]
        fresh = dict(zip(missing, self._embed(missing, templates, batch_size)))
        for label in labels:
            if label not in fresh:
                self._rows.move_to_end((templates, label))
        matrix = np.stack([fresh[label] if label in fresh else self._rows[templates, label] for label in labels])
        self._rows.update(((templates, label), row) for label, row in fresh.items())
        while len(self._rows) > self._max_labels:
            self._rows.popitem(last=False)
        self._last = (labels, templates), matrix
        return matrix

    def _embed(self, labels: list[str], templates: tuple[str, ...], batch_size: int | None) -> np.ndarray:
        rows = self._embedder.texts(label_sentences(labels, templates), normalize=True, batch_size=batch_size)
        return average_sentences(rows, len(templates))


def label_sentences(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every label in the first template, then every label in the second, and so on."""
    return [template.format(label) for template in templates for label in labels]


def average_sentences(rows: np.ndarray, templates: int) -> np.ndarray:
    """(L, D) of the embeddings of `label_sentences`, which have length 1: their mean over the templates, normalised."""
    return l2_normalize(rows.reshape(templates, -1, rows.shape[1]).mean(0))


def takes_label(template: object) -> bool:
    """Whether a template says where the label goes: by one {}, or by any number of {0}.

    Every other replacement field is refused: a template may come from a stranger, and {:>1000000000} would be a gigabyte.
    """
    if not isinstance(template, str):
        return False
    try:
        fields = [field for _, *field in Formatter().parse(template) if field[0] is not None]
    except ValueError:
        return False
    plain = [name for name, form, conversion in fields if not form and not conversion]
    return len(plain) == len(fields) and (plain == [""] or set(plain) == {"0"})


def check_labels(labels: Iterable[str], name: str = "candidate_labels") -> tuple[str, ...]:
    """The labels.

    Raises:
        ValueError: `name` is a string or empty, or holds something that is not a string.
    """
    if isinstance(labels, str):
        raise ValueError(f"{name}: expected a list of labels, got the string {labels!r:.80}")
    labels = tuple(labels)
    if not labels:
        raise ValueError(f"{name}: expected at least one label, got none")
    wrong = [label for label in labels if not isinstance(label, str)]
    if wrong:
        raise ValueError(f"{name}: expected strings, got {wrong[0]!r:.80}")
    return labels


def distinct_labels(labels: Iterable[str], name: str = "candidate_labels") -> tuple[str, ...]:
    """The labels, each once; a warning names those that are there more than once.

    Raises:
        ValueError: as of `check_labels`, or a label is empty.
    """
    labels = check_labels(labels, name)
    for place, label in enumerate(labels):
        if not label.strip():
            raise ValueError(f"{name}: label {place} is empty ({label!r}): write a label, or leave it out")
    for problem in repeated_labels(labels):
        warn(f"{name}: {problem}")
    return tuple(dict.fromkeys(labels))


def repeated_labels(labels: Iterable[str]) -> list[str]:
    """A sentence about the labels that are there more than once; none if there are none."""
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    verbs = ("is", "counts") if len(repeated) == 1 else ("are", "count")
    return [f"{_quoted(repeated)} {verbs[0]} there more than once, and {verbs[1]} once"] if repeated else []


def only_label(labels: Sequence[str]) -> list[str]:
    """A sentence where there is nothing to compare a label with; none otherwise."""
    if len(labels) > 1:
        return []
    return [
        f"{_quoted(labels)} is the only label, so its score is always 1: add other labels, or ask for a least relevance"
    ]


def label_problems(embedder: Embedder, labels: Sequence[str]) -> list[str]:
    """Problems that a model has with distinct labels, one sentence for each, which names the labels: its tokenizer knows no
    word of them (Korean or emoji in an English vocabulary), or they are the same to it ("Cat" and "cat" without capitals).
    """
    unknown = embedder.inputs.unk_token_id
    rows = embedder.inputs.token_ids(list(labels), embedder.max_tokens)
    unread = [
        label
        for label, ids in zip(labels, rows)
        if unknown is not None and len(ids) > 2 and set(ids[1:-1]) == {unknown}
    ]
    same: dict[tuple[int, ...], list[str]] = {}
    for label, ids in zip(labels, rows):
        same.setdefault(tuple(ids), []).append(label)
    problems = []
    if unread:
        problems.append(
            f"the tokenizer of {embedder.name} knows no word of {_quoted(unread)}, so "
            f"{'its score means' if len(unread) == 1 else 'their scores mean'} nothing: write labels in a language that the "
            "model was trained on"
        )
    for group in same.values():
        if len(group) > 1 and not set(group) <= set(unread):
            problems.append(f"{_quoted(group)} are the same tokens to {embedder.name}, so they share their score")
    return problems


class LabelProblems:
    """`label_problems` of one model, kept for the next call with the same labels. Several threads may call it."""

    def __init__(self, embedder: Embedder):
        self._embedder = embedder
        self._last: tuple[tuple[str, ...], list[str]] = (), []

    def __call__(self, labels: Sequence[str]) -> list[str]:
        labels, last = tuple(labels), self._last
        if labels != last[0]:
            self._last = last = labels, label_problems(self._embedder, labels)
        return last[1]


def _quoted(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return ", ".join(f"{label[:40]!r}" for label in labels[:_NAMED]) + more


def check_templates(templates: str | Iterable[str], name: str = "hypothesis_template") -> tuple[str, ...]:
    """The templates.

    Raises:
        ValueError: no templates, or one without exactly one placeholder for the label.
    """
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    if not templates:
        raise ValueError(f"{name}: expected at least one template, such as 'a photo of a {{}}', got none")
    for template in templates:
        if not takes_label(template):
            raise ValueError(
                f"{name}: {template!r:.80} must contain exactly one '{{}}' placeholder for the label: write "
                f"{_with_label(template)!r:.100}. '{{0}}' may be repeated; other braces are written twice"
            )
    return templates


def _with_label(template: object) -> str:
    """The template that was probably meant."""
    if not isinstance(template, str):
        return "a photo of a {}"
    for meant in (re.sub(r"\{\w*\}|<label>|%s", "{}", template), f"{template.rstrip(' .')} {{}}"):
        if takes_label(meant):
            return meant
    return "a photo of a {}"
