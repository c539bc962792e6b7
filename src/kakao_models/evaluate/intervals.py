"""95 % intervals of measured shares: how far the share of other images of the same kind may be from it."""

import math
from collections.abc import Sequence

import numpy as np

_AT_ONCE = 2**22  # weights of bootstrap samples in memory


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count`."""
    z = 1.959963984540054
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(
    hits: Sequence[np.ndarray], groups: np.ndarray, *, samples: int = 1000, seed: int = 0
) -> list[tuple[float, float]]:
    """The middle 95 % of shares over bootstrap samples of groups: a group is drawn with all of its rows.

    Args:
        hits: arrays (N,) of bool, whose shares of true are meant; all are of the same samples.
        groups: (N,) the group of each row, such as the image of a caption, from 0.
    """
    count = int(groups.max()) + 1
    sums = np.stack([np.bincount(groups, weights, count) for weights in (np.ones(len(groups)), *hits)], axis=1)
    draw, shares = np.random.default_rng(seed), []
    step = max(1, _AT_ONCE // count)
    for start in range(0, samples, step):
        times = draw.multinomial(
            count, np.full(count, 1 / count), min(step, samples - start)
        )  # how often each is drawn
        drawn = times @ sums
        shares.append(drawn[:, 1:] / drawn[:, :1])
    low, high = np.percentile(np.concatenate(shares), (2.5, 97.5), axis=0)
    return list(zip(low.tolist(), high.tolist()))
