"""How much each weight matters to the loss."""

from typing import Any

import keras
import numpy as np

from tfcompress.structured.fisher import fisher as diagonal
from tfcompress.weights import kernels


def fisher(
    model: keras.Model, data: Any, loss: Any = None, *, batches: int = 32, batch_size: int = 16
) -> dict[str, np.ndarray]:
    """Returns by path of each kernel its diagonal Fisher information; `model` stays as it is.

    As `importance` of `cluster` it makes k-means minimise the loss's increase instead of the
    weights' error.

    Args:
        data: (x, y) and the other forms of `tfcompress.structured.evaluation.batches`.
        loss: as `compile` takes it; None: the one that the model is compiled with.
        batches: at most so many are read. batch_size: rows of a batch where `data` is arrays.

    Raises:
        InputError: data or a loss that does not fit, or is not finite.

    Sources: LeCun et al. 1990, "Optimal brain damage"; Choi et al. 2017, "Towards the limit of
    network quantization".

        importance = tfc.fisher(model, (x_train, y_train))
        small = tfc.cluster(model, clusters=8, importance=importance)
    """
    found = kernels(model)
    variables = [kernel.variable for kernel in found]
    squares = diagonal(model, variables, data, loss, batches=batches, batch_size=batch_size)
    return {kernel.path: square for kernel, square in zip(found, squares, strict=True)}
