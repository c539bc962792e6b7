"""Calibration of the cosine of a text and an image, and its error on words and photographs that it was not fitted to.

A word fits a photograph where one of its captions has the word. That is a weak label: captions leave things out.

Axes: W words  N photographs  P pairs of a word and a photograph
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from kakao_models.inference.relevance import Relevance

from .calibration import calibration_scores

KNOTS = 32
LEAST_PAIRS = 200  # that fit; with fewer, probabilities near 1 are of a handful
HALVINGS = 10  # random halves of words and photographs to measure on
_PHOTOGRAPHS, _SHARE = (
    5,
    0.5,
)  # a word must be in the captions of at least this many photographs, and at most of this share of them
_TOKEN = re.compile(r"[^\W\d_]+|[.,;]")
# In English a noun stands between one of the first and one of the second, or at the end
_BEFORE = frozenset("a an the his her their its two three four some many several".split())
_AFTER = frozenset(
    ". , ; is are in on at with of and to by near from over through into as while behind under next for that who or onto off along "
    "wearing across up down around".split()
)
_UNSEEN = frozenset(
    "back front top middle side edge other one all each way others another background picture photo".split()
)
_NOUN_SHARE = 0.15  # of a word's places, those between such words
_LEVELS = (0.5, 0.7)
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
PRECISIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CONFIDENCE = 0.95
_LEAST = np.arange(100, -101, -1) / 100  # cosines that are tested for a precision
_FEWEST = 30  # words that keep any photograph, for the first test
_DRAWS, _CHOICE = 50, 10  # label sets for measuring "none of these", and labels in each
_NONSENSE = 100


@dataclass(frozen=True)
class Pairs:
    """Words, photographs and which fit.

    fits: (W, N) bool.
    """

    words: list[str]
    fits: np.ndarray

    def halves(self, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Places of the words and of the photographs of two halves, which share none; the same of a seed each time."""
        draw = np.random.default_rng(seed)
        words, photographs = (draw.permutation(count) for count in self.fits.shape)
        return [(np.sort(words[number::2]), np.sort(photographs[number::2])) for number in (0, 1)]


def captioned_pairs(captions: Sequence[Sequence[str]], words: Sequence[str] | None = None) -> Pairs:
    """Words and the photographs whose captions have them, alone or with a plural's s.

    Args:
        captions: N lists.
        words: by default the nouns of English captions, without those of very few photographs or of most.

    Raises:
        ValueError: fewer than two words are in the captions of enough photographs.
    """
    tokens = [[_TOKEN.findall(caption.lower()) for caption in some] for some in captions]
    found = [{token for caption in some for token in caption} for some in tokens]
    if words is None:
        words = _nouns([caption for some in tokens for caption in some])
    forms = {word: {word, f"{word}s", f"{word}es"} for word in dict.fromkeys(word.lower() for word in words)}
    fits = {word: np.array([not some.isdisjoint(names) for some in found]) for word, names in forms.items()}
    kept = [word for word, row in fits.items() if _PHOTOGRAPHS <= row.sum() <= max(_SHARE * len(row), _PHOTOGRAPHS)]
    if len(kept) < 2:
        raise ValueError(
            f"{len(captions):,} photographs have {len(kept)} words that occur in the captions of at least {_PHOTOGRAPHS} and of at most "
            f"{_SHARE:.0%} of them, expected at least 2: give more photographs, or --words if captions are not in English"
        )
    return Pairs(kept, np.array([fits[word] for word in kept]))


def _nouns(captions: Sequence[Sequence[str]]) -> list[str]:
    """The nouns of tokenized captions by the words around them, in the order of the alphabet; no plural of another one."""
    counts = Counter(word for caption in captions for word in caption)
    plurals = {f"{word}{ending}": word for word in counts for ending in ("es", "s")}
    places = Counter(
        plurals.get(word, word)
        for caption in captions
        for before, word, after in zip(caption, caption[1:], [*caption[2:], "."])
        if before in _BEFORE and after in _AFTER
    )
    nouns = {word for word, count in places.items() if len(word) > 2 and count > max(1, _NOUN_SHARE * counts[word])}
    return sorted(nouns - plurals.keys() - _UNSEEN - _BEFORE - _AFTER)


def labelled_pairs(labels: np.ndarray, names: Sequence[str]) -> Pairs:
    """The classes of photographs: a name fits those of its class.

    Args:
        labels: (N,), places in `names`.
    """
    return Pairs(list(names), np.arange(len(names))[:, None] == labels)


def fit_relevance(cosines: np.ndarray, fits: np.ndarray) -> Relevance:
    """Isotonic regression of the share of fitting pairs by their cosine (Zadrozny and Elkan 2002), of at most `KNOTS` steps, between
    which it is linear.

    Args:
        cosines, fits: (P,), of floats and of bool.

    Raises:
        ValueError: too few pairs fit.
    """
    total = int(fits.sum())
    if total < LEAST_PAIRS or total == len(fits):
        raise ValueError(
            f"{total:,} of {len(fits):,} pairs of a word and a photograph fit, expected at least {LEAST_PAIRS}, and some that do not fit: "
            "give more photographs"
        )
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(cosines, kind="stable")
    cosines, fits = np.asarray(cosines, np.float64)[order], fits[order]
    ends = np.searchsorted(np.cumsum(fits), total * np.arange(1, KNOTS) / KNOTS)  # each step has as many that fit
    steps = [(x, y) for x, y in zip(np.split(cosines, ends), np.split(fits, ends)) if len(x)]
    means, shares, counts = (np.array(column) for column in zip(*((x.mean(), y.mean(), len(x)) for x, y in steps)))
    smooth = IsotonicRegression(y_min=0, y_max=1).fit_transform(means, shares, sample_weight=counts)
    knots = dict(zip(means.round(5).tolist(), smooth.round(5).tolist()))  # of equal cosines the last
    return Relevance(tuple(knots), tuple(knots.values()))


def measure_relevance(
    relevance: Relevance, cosines: np.ndarray, fits: np.ndarray, temperature: float
) -> dict[str, float]:
    """Calibration error of pairs, and of the pairs predicted at 0.5 or more and 0.7 or more what is predicted and what is right.

    `none_auroc` is the area under the ROC curve of telling images that none of ten labels fits from others, by the largest
    relevance; `none_auroc_softmax` by the largest softmax over the labels.

    Args:
        cosines, fits: (W, N).
    """
    from sklearn.metrics import roc_auc_score

    predicted = relevance(cosines)
    scores = {"ece": calibration_scores(predicted.ravel(), fits.ravel()).ece}
    scores["auroc"] = float(roc_auc_score(fits.ravel(), cosines.ravel()))
    for level in _LEVELS:
        above = predicted >= level
        name = f"at_{100 * level:.0f}"
        if above.any():
            scores |= {f"right_{name}": float(fits[above].mean()), f"predicted_{name}": float(predicted[above].mean())}
        scores[f"found_{name}"] = float((above & fits).sum() / max(fits.sum(), 1))
    draw = np.random.default_rng(0)
    places = [draw.choice(len(fits), min(_CHOICE, len(fits)), replace=False) for _ in range(_DRAWS)]
    none = np.concatenate([~fits[some].any(0) for some in places])
    if none.any() and not none.all():
        best = np.concatenate([cosines[some].max(0) for some in places])
        scores["none_auroc"] = float(roc_auc_score(~none, best))  # relevance grows with the cosine
        softmax = [1 / np.exp((cosines[some] - cosines[some].max(0)) / temperature).sum(0) for some in places]
        scores["none_auroc_softmax"] = float(roc_auc_score(~none, np.concatenate(softmax)))
    return scores


def guarantees(cosines: np.ndarray, fits: np.ndarray) -> dict[str, dict[str, float]]:
    """The least cosines that guarantee a coverage or a precision, by levels such as "0.9"; a level that none reaches is left out.

    Both are for a new word and new photographs, drawn as these words and photographs were (exchangeable). No property of the model
    or of its cosines is assumed. Pairs that share a word are alike, so words are counted and not pairs.

    coverage: a photograph that fits the word is kept with at least this probability, over the word, the photograph and the
        calibration. This is split conformal prediction with groups (Lee, Barber and Willett 2023, "Distribution-free inference
        with hierarchical data", arXiv 2306.06342): every word has the same weight, and a further word the lowest cosine. The
        proof is for new words among these photographs; for new photographs too it is an approximation.
    precision: with a confidence of `CONFIDENCE` over the calibration, a word that keeps any photograph keeps a share of at least
        this that fits, on average over such words. Cosines are tested from the highest on with the bound of Hoeffding and
        Bentkus, and the last one before the first failure is taken (Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052).

    Args:
        cosines, fits: (W, N). They need not be other pairs than those of the fit: only the order of cosines counts here, which
            no fit changes.
    """
    found: dict[str, dict[str, float]] = {"coverage": {}, "precision": {}}
    counts = fits.sum(1)
    total = np.count_nonzero(counts)
    order = np.argsort(-cosines[fits], kind="stable")
    weights = np.broadcast_to(1 / np.maximum(counts, 1)[:, None], fits.shape)[fits][order] / (total + 1)
    reached = np.cumsum(weights)
    for level in COVERAGES:
        place = np.searchsorted(reached, level - 1e-9)
        if place < len(order):
            found["coverage"][f"{level:g}"] = _rounded(cosines[fits][order[place]], np.floor)
    shares = [_kept_right(cosines, fits, least) for least in _LEAST]
    tested = [(least, right) for least, right in zip(_LEAST, shares) if len(right) >= _FEWEST]
    for level in PRECISIONS:
        for least, right in tested:
            if not _is_above(right, level):
                break
            found["precision"][f"{level:g}"] = _rounded(least, np.ceil)
    return found


def held(limits: dict[str, dict[str, float]], cosines: np.ndarray, fits: np.ndarray) -> dict[str, dict[str, float]]:
    """The coverage and the precision that guaranteed cosines have for words and photographs (W, N), without those that keep nothing."""
    some = fits.any(1)

    def coverages(least: float) -> np.ndarray:
        return ((cosines >= least) & fits).sum(1)[some] / fits.sum(1)[some]

    measures = {"coverage": coverages, "precision": partial(_kept_right, cosines, fits)}
    shares = {
        kind: {level: measures[kind](least) for level, least in levels.items()} for kind, levels in limits.items()
    }
    return {kind: {level: float(x.mean()) for level, x in levels.items() if len(x)} for kind, levels in shares.items()}


def _kept_right(cosines: np.ndarray, fits: np.ndarray, least: float) -> np.ndarray:
    """Returns, for each word that keeps any photograph, the share of those that fit."""
    kept = cosines >= least
    counts = kept.sum(1)
    return (kept & fits).sum(1)[counts > 0] / counts[counts > 0]


def _is_above(shares: np.ndarray, level: float) -> bool:
    """Whether numbers in 0..1 have a mean above `level`, with `CONFIDENCE`: the bound of Hoeffding and Bentkus (Bates et al. 2021,
    "Distribution-free, risk-controlling prediction sets", arXiv 2101.02703)."""
    from scipy.stats import binom

    count, risk, most, doubt = len(shares), 1 - float(shares.mean()), 1 - level, 1 - CONFIDENCE
    if risk >= most:
        return False
    divergence = _relative(risk, most) + _relative(1 - risk, 1 - most)
    return np.exp(-count * divergence) <= doubt or np.e * binom.cdf(np.ceil(count * risk - 1e-9), count, most) <= doubt


def _relative(share: float, expected: float) -> float:
    return share * float(np.log(share / expected)) if share > 0 else 0.0


def _rounded(cosine: float, towards: Callable) -> float:
    return float(towards(float(cosine) * 1e6) / 1e6)


def nonsense(count: int = _NONSENSE) -> list[str]:
    """Queries that fit nothing: one to three words of random letters, the same each time."""
    draw = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return [
        " ".join("".join(draw.choice(letters, draw.integers(3, 10))) for _ in range(draw.integers(1, 4)))
        for _ in range(count)
    ]
