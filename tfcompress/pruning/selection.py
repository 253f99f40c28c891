"""What patterns share: choosing the lowest scores in linear time, the same on every machine."""

import numpy as np

from tfcompress.errors import require


def check(scores: np.ndarray, sparsity: float, owner: str, maximum: float = 1.0) -> None:
    """Raises `InputError` unless the scores can be ordered and the sparsity is in range."""
    if maximum < 1:
        rule, holds = f"[0, {maximum:g}]", 0 <= sparsity <= maximum + 1e-9
    else:
        rule, holds = "[0, 1)", 0 <= sparsity < 1
    require(holds, f"sparsity of {owner}", f"must be in {rule}", sparsity=sparsity)
    require(scores.size > 0, f"scores of {owner}", "must not be empty", shape=scores.shape)
    require(not np.isnan(scores).any(), f"scores of {owner}", "must not be NaN")


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns a bool array that marks the `count` lowest scores; of equal ones, the first.

    Partition by value, not by index: which of equal scores `argpartition` puts first depends on
    the processor.
    """
    flat = scores.ravel()
    marked = np.zeros(flat.size, bool)
    if count > 0:
        limit = np.partition(flat, count - 1)[count - 1]
        np.less(flat, limit, out=marked)
        ties = np.flatnonzero(flat == limit)
        marked[ties[: count - np.count_nonzero(marked)]] = True
    return marked.reshape(scores.shape)


def count_of(sparsity: float, size: int) -> int:
    """Returns how many of `size` things go: the nearest whole number that leaves one."""
    return min(round(sparsity * size), size - 1)
