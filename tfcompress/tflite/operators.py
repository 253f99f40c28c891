"""Which operators LiteRT computes in integers, and what it asks of their tensors' grids.

Source: the kernels of LiteRT (tensorflow/lite/kernels) and its quantization specification.
"""

import dataclasses
import enum

import numpy as np

from tfcompress.quantization.grid import Codes, Grid

INT8 = Codes(symmetric=False, narrow=False)
INT16 = Codes(bits=16)  # symmetric: the kernels want zero point 0


class Way(enum.Enum):
    """What an operator's inputs and outputs have to do with one another."""

    KERNEL = "multiplies by constant weights; its output has a range of its own"
    FREE = "each tensor has a range of its own"
    SAME = "what comes out is on the grid of what goes in"
    JOINED = "all inputs are on the grid of the output"
    FIXED = "the kernel dictates the output's grid"


@dataclasses.dataclass(frozen=True)
class Operator:
    """`bits`: of the activations with which it has an integer kernel, 8 or 16 or both.

    `fixed`: by bits the (scale, zero point) that the kernel dictates.
    """

    way: Way
    bits: tuple[int, ...] = (8, 16)
    fixed: tuple[tuple[int, float, int], ...] = ()

    def output_grid(self, bits: int) -> Grid | None:
        """Returns the grid that the kernel dictates for its outputs, if it does."""
        for number, scale, zero_point in self.fixed:
            if number == bits:
                return Grid(np.array(scale), np.array(zero_point), codes(bits))
        return None


@dataclasses.dataclass(frozen=True)
class Places:
    """Where an operator that multiplies by weights finds them among its inputs.

    `channels`: the axis of the weights, as stored, that counts output channels.
    """

    data: int
    kernel: int
    bias: int
    channels: int = 0


KERNELS = {
    "CONV_2D": Places(0, 1, 2),
    "DEPTHWISE_CONV_2D": Places(0, 1, 2, channels=3),
    "FULLY_CONNECTED": Places(0, 1, 2),
    "TRANSPOSE_CONV": Places(2, 1, 3),
}
# Operators whose reference kernels take 4-bit weights; those that are fast are fewer.
INT4_KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

# Comparisons are left out: with a scale of 1 or more LiteRT's kernels end the process.
_SIGMOID = ((8, 1 / 256, -128), (16, 1 / 32768, 0))
_TANH = ((8, 1 / 128, 0), (16, 1 / 32768, 0))

OPERATORS: dict[str, Operator] = {
    **{name: Operator(Way.KERNEL) for name in KERNELS},
    **dict.fromkeys(
        ("ADD", "SUB", "MUL", "MEAN", "SUM", "BATCH_MATMUL", "LEAKY_RELU", "RSQRT", "EXP", "RELU"),
        Operator(Way.FREE),
    ),
    **dict.fromkeys(
        (
            "ABS", "SQUARED_DIFFERENCE", "PRELU", "ELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1",
            "HARD_SWISH", "GELU", "DIV", "LOG", "ARG_MAX", "ARG_MIN",
        ),
        Operator(Way.FREE, (8,)),
    ),
    **dict.fromkeys(
        (
            "RESHAPE", "TRANSPOSE", "AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "MIRROR_PAD", "SLICE",
            "STRIDED_SLICE", "SPLIT", "SQUEEZE", "EXPAND_DIMS", "RESIZE_BILINEAR",
            "RESIZE_NEAREST_NEIGHBOR", "GATHER", "GATHER_ND", "BROADCAST_TO", "UNPACK",
            "REDUCE_MAX", "REDUCE_MIN",
        ),
        Operator(Way.SAME),
    ),
    **dict.fromkeys(
        (
            "SPLIT_V", "TILE", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND",
            "BATCH_TO_SPACE_ND", "REVERSE_V2",
        ),
        Operator(Way.SAME, (8,)),
    ),
    **dict.fromkeys(
        ("CONCATENATION", "PACK", "MAXIMUM", "MINIMUM", "SELECT", "SELECT_V2", "PADV2"),
        Operator(Way.JOINED),
    ),
    "SOFTMAX": Operator(Way.FIXED, fixed=_SIGMOID),
    "LOGISTIC": Operator(Way.FIXED, fixed=_SIGMOID),
    "TANH": Operator(Way.FIXED, fixed=_TANH),
    "L2_NORMALIZATION": Operator(Way.FIXED, (8,), ((8, 1 / 128, 0),)),
    "LOG_SOFTMAX": Operator(Way.FIXED, (8,), ((8, 16 / 256, 127),)),
}  # fmt: skip


def codes(bits: int) -> Codes:
    """Returns the integers of activations of 8 or 16 bits."""
    return INT8 if bits == 8 else INT16


def way(name: str) -> Way | None:
    """Returns what an operator's inputs and outputs have to do with one another, None: unknown."""
    return OPERATORS[name].way if name in OPERATORS else None
