"""Embeddings of labels, computed once.

Axes: L labels  D width of an embedding
"""

from collections import OrderedDict
from collections.abc import Iterable
from string import Formatter

import numpy as np

from kakao_models.inference.embedder import Embedder, l2_normalize


class LabelEmbeddings:
    """Label → the embedding of the sentences that templates make of it, kept for the next call.

    With several templates it is the mean of the sentences' normalised embeddings, normalised again (prompt
    ensembling: Radford et al. 2021, section 3.1.4).

    Args:
        embedder: of an ALIGN. Its weights must not change between calls.
        max_labels: as many embeddings are kept, the most recently used ones.
    """

    def __init__(self, embedder: Embedder, max_labels: int = 20_000):
        self._embedder = embedder
        self._max_labels = max_labels
        self._rows: OrderedDict[tuple[tuple[str, ...], str], np.ndarray] = OrderedDict()
        self._last: tuple = (None, None)  # labels and templates of the last call, and what it returned

    def __call__(self, labels: Iterable[str], templates: Iterable[str], batch_size: int | None = None) -> np.ndarray:
        """(L, D), each row of length 1. Sentences of more than 64 tokens are cut.

        Raises:
            ValueError: no labels, or a template that doesn't say where the label goes.
        """
        labels, templates = _checked(labels, templates)
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
        sentences = [template.format(label) for template in templates for label in labels]
        rows = self._embedder.texts(sentences, normalize=True, batch_size=batch_size)
        return l2_normalize(rows.reshape(len(templates), len(labels), self._embedder.dim).mean(0))


def takes_label(template: object) -> bool:
    """Whether a template says, by {} or {0}, where the label goes. What else `str.format` knows is none of its business: on a
    web page `{:>1000000000}` would be a gigabyte.
    """
    try:
        fields = [field for _, *field in Formatter().parse(template) if field[0] is not None]
    except (TypeError, ValueError):
        return False
    plain = [name for name, form, conversion in fields if not form and not conversion]
    return len(plain) == len(fields) and (plain == [""] or set(plain) == {"0"})


def _checked(labels, templates) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(labels, str):
        raise ValueError(f"candidate_labels: wanted a list of labels, got the string {labels!r}")
    labels = tuple(labels)
    if not labels:
        raise ValueError("candidate_labels: got no labels, wanted at least one")
    wrong = [label for label in labels if not isinstance(label, str)]
    if wrong:
        raise ValueError(f"candidate_labels: wanted strings, got {wrong[0]!r}")
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    if not templates:
        raise ValueError("hypothesis_template: got no templates, wanted at least one, such as 'a photo of a {}'")
    for template in templates:
        if not takes_label(template):
            raise ValueError(
                f"hypothesis_template: {template!r} does not say once, by {{}}, where the label goes: "
                "wanted something like 'a photo of a {}'"
            )
    return labels, templates
