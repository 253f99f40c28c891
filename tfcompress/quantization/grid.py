"""Which integers a tensor is stored in, and which real numbers they stand for."""

import dataclasses
import numbers

import numpy as np

from tfcompress.errors import require


@dataclasses.dataclass(frozen=True)
class Codes:
    """The integers that a tensor may hold: signed, of `bits` bits.

    `bits`: in [2, 16]. `symmetric`: code 0 stands for 0.0, as TFLite wants of weights and of 16 bit
    activations; otherwise the zero point is chosen so that the whole range is used. `narrow`: the
    lowest code is left out, so that there are as many negative codes as positive ones, as TFLite
    wants of weights.

    >>> WEIGHTS.lowest, WEIGHTS.highest, ACTIVATIONS.lowest, ACTIVATIONS.highest
    (-127, 127, -128, 127)
    """

    bits: int = 8
    symmetric: bool = True
    narrow: bool = True

    def __post_init__(self) -> None:
        whole = isinstance(self.bits, numbers.Integral) and not isinstance(self.bits, bool)
        require(
            whole and 2 <= self.bits <= 16,
            "bits of Codes",
            "must be a whole number in [2, 16]",
            bits=self.bits,
        )
        for name in ("symmetric", "narrow"):
            value = getattr(self, name)
            require(isinstance(value, bool), f"{name} of Codes", "must be a bool", **{name: value})

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return -(2 ** (self.bits - 1)) + self.narrow

    @property
    def highest(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1


WEIGHTS = Codes()
ACTIVATIONS = Codes(symmetric=False, narrow=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The points that a tensor's values are moved to: scale * (code - zero_point).

    `scale` float64, at least 0, and `zero_point` int64 have shapes that broadcast against the
    tensor: one number per tensor, per channel, per block, or per weight where weights are grouped
    by their size. A scale of 0 stands for a dead group, all zeros: its codes are the zero point,
    and its values come back as the zeros that they are.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    codes: Codes = WEIGHTS

    def steps(self, array: np.ndarray) -> np.ndarray:
        """Returns array / scale, float64: how many steps each value lies from 0; dead groups 0.

        A value that is not finite, or a shape that the scale does not fit, is an `InputError`.
        """
        array = finite(array, "Values to quantize").astype(np.float64)
        scale = _fitting(self.scale, array.shape)
        return np.divide(array, scale, out=np.zeros(array.shape), where=scale > 0)

    def clip(self, steps: np.ndarray) -> np.ndarray:
        """Returns the codes, int32, of whole numbers of steps; those past the ends saturate."""
        codes = steps + _fitting(self.zero_point, steps.shape)
        return np.clip(codes, self.codes.lowest, self.codes.highest).astype(np.int32)

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """Returns the numbers that `codes` stand for, float32."""
        codes = np.asarray(codes)
        inside = codes.size == 0 or (
            self.codes.lowest <= codes.min() and codes.max() <= self.codes.highest
        )
        rule = f"must be in [{self.codes.lowest}, {self.codes.highest}]"
        require(inside, "Codes to dequantize", rule, lowest=codes.min(), highest=codes.max())
        steps = codes - _fitting(self.zero_point, codes.shape)
        return (steps * _fitting(self.scale, codes.shape)).astype(np.float32)


def grid(
    low: np.ndarray | float,
    high: np.ndarray | float,
    codes: Codes = WEIGHTS,
    overshoot: int = 0,
) -> Grid:
    """Returns the grid on which `codes` cover the range [low, high] and hold 0 exactly.

    Symmetric codes: scale = max(|low|, |high|) / highest, zero point 0. Others: scale = (high -
    low) / (highest - lowest), and the zero point is the whole number that puts `low` nearest to the
    lowest code (the range is moved by half a step at most). A range that does not hold 0 is
    extended to it. A range of width 0 (a dead channel) has scale 0 and zero point 0.

    `overshoot` puts the largest value so many codes past the largest one, see `max_plus_one`; for
    symmetric codes only.

    >>> asymmetric = grid(-1.0, 3.0, ACTIVATIONS)
    >>> float(asymmetric.scale) == 4 / 255, int(asymmetric.zero_point)
    (True, -64)
    """
    low, high = finite(low, "low of a range"), finite(high, "high of a range")
    require(
        (low <= high).all(),
        "A range",
        "must have low <= high",
        low=low.tolist(),
        high=high.tolist(),
    )
    low, high = np.asarray(np.minimum(low, 0.0)), np.asarray(np.maximum(high, 0.0))
    if codes.symmetric:
        scale = np.asarray(np.maximum(-low, high), np.float64) / (codes.highest + overshoot)
        return Grid(scale, np.zeros(scale.shape, np.int64), codes)
    require(overshoot == 0, "overshoot", "needs symmetric codes", overshoot=overshoot, codes=codes)
    scale = (high - low).astype(np.float64) / (codes.highest - codes.lowest)
    below = np.divide(-low, scale, out=np.full(scale.shape, -codes.lowest, float), where=scale > 0)
    zero_point = np.clip(np.rint(codes.lowest + below), codes.lowest, codes.highest)
    return Grid(scale, zero_point.astype(np.int64), codes)


def finite(array: np.ndarray | float, owner: str) -> np.ndarray:
    """Returns an array of numbers as float32 or float64; NaN or infinity is an `InputError`."""
    array = np.asarray(array)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    wrong = array.size - int(np.isfinite(array).sum())
    require(wrong == 0, owner, "must be finite", not_finite=wrong, of=array.size)
    return array


def _fitting(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        rule = "must broadcast against the array"
        require(False, "The scale of a Grid", rule, scale=np.shape(values), array=shape)
        raise
