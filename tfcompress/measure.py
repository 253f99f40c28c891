"""The numbers of a Keras model: weights, zeros, shared values, and the bytes they need."""

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.weights import kernels

FLOAT_BYTES = 4  # a kernel's values are counted as float32, whatever the compute type
DEFLATE_LEVEL = 9


@dataclasses.dataclass(frozen=True)
class Storage:
    """Bytes that float32 weights need in five forms; `a + b` is the storage of both.

    `dense_bytes`: 4 per weight.
    `csr_bytes`: compressed sparse rows, a row per output channel: 4 per non-zero weight, its
        column and the row pointers in the narrowest unsigned integers that hold them.
    `bitmask_bytes`: one bit per weight, then 4 per non-zero weight.
    `deflated_bytes`: the dense bytes after zlib at level 9.
    `entropy_bytes`: what an ideal coder of single values takes, without context: their empirical
        entropy, and 4 per distinct value for the table; the dense bytes where the table would cost
        more than it saves. No lower bound where most values differ, as after pruning alone.
    """

    dense_bytes: int = 0
    csr_bytes: int = 0
    bitmask_bytes: int = 0
    deflated_bytes: int = 0
    entropy_bytes: int = 0

    def __add__(self, other: "Storage") -> "Storage":
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Storage(*(a + b for a, b in zip(ours, theirs, strict=True)))


@dataclasses.dataclass(frozen=True)
class KernelMeasures:
    """The numbers of one kernel.

    `size` weights in all, `nonzeros` of them not zero, `sparsity` = 1 - nonzeros / size in [0, 1].
    `distinct_values` counts the different values, zero among them, `distinct_nonzero_values`
    without it. `entropy_bits` per weight, of the values as independent symbols.
    """

    path: str
    shape: tuple[int, ...]
    size: int
    nonzeros: int
    sparsity: float
    distinct_values: int
    distinct_nonzero_values: int
    entropy_bits: float
    storage: Storage

    def to_dict(self) -> dict[str, Any]:
        """Returns the same as plain values that JSON can hold."""
        return dataclasses.asdict(self) | {"shape": list(self.shape)}


@dataclasses.dataclass(frozen=True)
class ModelMeasures:
    """The numbers of a model.

    `parameters` counts all weights of the model, biases and BatchNorm statistics too. Everything
    else is about the `kernels`, the weights that multiply inputs (`tfcompress.weights`): `weights`
    of them in all, `nonzeros` of those not zero, `sparsity` in [0, 1], and `distinct_values`, the
    most different values other than zero that one kernel has.
    """

    parameters: int
    kernels: tuple[KernelMeasures, ...]

    @property
    def weights(self) -> int:
        return sum(kernel.size for kernel in self.kernels)

    @property
    def nonzeros(self) -> int:
        return sum(kernel.nonzeros for kernel in self.kernels)

    @property
    def sparsity(self) -> float:
        return 1 - self.nonzeros / self.weights if self.weights else 0.0

    @property
    def distinct_values(self) -> int:
        return max((kernel.distinct_nonzero_values for kernel in self.kernels), default=0)

    @property
    def storage(self) -> Storage:
        return sum((kernel.storage for kernel in self.kernels), Storage())

    def to_dict(self) -> dict[str, Any]:
        """Returns the same as plain values that JSON can hold."""
        totals = ("parameters", "weights", "nonzeros", "sparsity", "distinct_values")
        return {name: getattr(self, name) for name in totals} | {
            "storage": dataclasses.asdict(self.storage),
            "kernels": [kernel.to_dict() for kernel in self.kernels],
        }


def measure_model(model: keras.Model) -> ModelMeasures:
    """Reads the numbers of a built model, which stays as it is.

    Memory is a few times the largest kernel. Most of the time goes into deflating sparse or
    clustered weights: about a second per million.

    Raises:
        InputError: the model is not built.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> measures = measure_model(model)
    >>> measures.parameters, measures.weights
    (36, 32)
    >>> measures.kernels[0].storage.dense_bytes
    128
    """
    found = tuple(
        measure_kernel(kernel.path, kernel.value(), kernel.output_axes) for kernel in kernels(model)
    )
    return ModelMeasures(parameters=model.count_params(), kernels=found)


def measure_kernel(
    path: str, values: np.ndarray, output_axes: Sequence[int] = (-1,)
) -> KernelMeasures:
    """Reads the numbers of one array of weights, float32 of any shape, not empty.

    `output_axes` are the axes that enumerate output channels: the rows of the CSR form.

    Example:

    >>> kernel = measure_kernel("dense/kernel", np.array([[0, 0.5], [0.5, 0]], np.float32))
    >>> kernel.nonzeros, kernel.distinct_nonzero_values, kernel.entropy_bits
    (2, 1, 1.0)
    """
    values = np.ascontiguousarray(values, dtype="<f4")
    distinct, counts = np.unique(values, return_counts=True)
    shares = counts / values.size
    entropy_bits = float(-(shares * np.log2(shares)).sum()) + 0.0  # no -0.0 for a constant
    nonzeros = int(np.count_nonzero(values))
    rows = math.prod(values.shape[axis] for axis in output_axes)
    dense = FLOAT_BYTES * values.size
    coded = math.ceil(entropy_bits * values.size / 8) + FLOAT_BYTES * distinct.size
    storage = Storage(
        dense_bytes=dense,
        csr_bytes=_csr_bytes(nonzeros, rows, values.size // rows),
        bitmask_bytes=math.ceil(values.size / 8) + FLOAT_BYTES * nonzeros,
        deflated_bytes=len(zlib.compress(values.data, DEFLATE_LEVEL)),
        entropy_bytes=min(dense, coded),
    )
    return KernelMeasures(
        path=path,
        shape=values.shape,
        size=values.size,
        nonzeros=nonzeros,
        sparsity=1 - nonzeros / values.size,
        distinct_values=distinct.size,
        distinct_nonzero_values=int(np.count_nonzero(distinct)),
        entropy_bits=entropy_bits,
        storage=storage,
    )


def _csr_bytes(nonzeros: int, rows: int, columns: int) -> int:
    index_bytes = np.min_scalar_type(columns - 1).itemsize
    pointer_bytes = np.min_scalar_type(nonzeros).itemsize
    return nonzeros * (FLOAT_BYTES + index_bytes) + (rows + 1) * pointer_bytes
