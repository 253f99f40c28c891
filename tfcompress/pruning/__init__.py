"""Which weights become zero: scores say in what order, patterns in what shape.

    >>> import numpy as np
    >>> from tfcompress import pruning
    >>> score, pattern = pruning.SCORES.create("magnitude"), pruning.PATTERNS.create("unstructured")
    >>> kernel = np.array([[0.1, -0.4], [0.3, 0.2]], np.float32)
    >>> pattern.mask(score.score(kernel), sparsity=0.5)
    array([[False,  True],
           [ True, False]])

Arrays in, arrays out: the callbacks apply the masks to a model.
"""

from tfcompress.pruning.allocation import allocate
from tfcompress.pruning.patterns import PATTERNS
from tfcompress.pruning.patterns.block import Block
from tfcompress.pruning.patterns.n_of_m import NOfM
from tfcompress.pruning.patterns.unstructured import Unstructured
from tfcompress.pruning.scores import SCORES
from tfcompress.pruning.scores.lamp import Lamp
from tfcompress.pruning.scores.magnitude import Magnitude
from tfcompress.pruning.scores.random import Random

__all__ = [
    "PATTERNS",
    "SCORES",
    "Block",
    "Lamp",
    "Magnitude",
    "NOfM",
    "Random",
    "Unstructured",
    "allocate",
]
