"""How much each kernel gives: the sparsities that one threshold over all kernels means."""

from collections.abc import Mapping

import numpy as np

from tfcompress.errors import require
from tfcompress.pruning import selection


def allocate(scores: Mapping[str, np.ndarray], sparsity: float) -> dict[str, float]:
    """Returns each kernel's sparsity when the lowest scores of all kernels together go.

    `scores` are by path and comparable between kernels (see `normalise` of the score); `sparsity`
    in [0, 1) is that of all weights together. Each kernel keeps its highest score. In each,
    round(sparsity * size) is a whole number: exactly as many weights as the threshold takes.

    >>> allocate({"a": np.array([1.0, 2.0, 9.0, 9.0]), "b": np.array([5.0, 6.0])}, sparsity=0.5)
    {'a': 0.5, 'b': 0.5}
    """
    require(len(scores) > 0, "scores of allocate", "must not be empty", scores={})
    flat = [np.ravel(array) for array in scores.values()]
    together = np.concatenate(flat)
    selection.check(together, sparsity, "allocate")
    ends = np.cumsum([array.size for array in flat])
    for end, array in zip(ends, flat, strict=True):
        together[end - array.size + np.argmax(array)] = np.inf
    count = min(round(sparsity * together.size), together.size - len(flat))
    parts = np.split(selection.lowest(together, count), ends[:-1])
    return {
        path: float(np.count_nonzero(part) / part.size)
        for path, part in zip(scores, parts, strict=True)
    }
