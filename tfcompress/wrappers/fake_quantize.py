"""Fake quantization of activations: floats that only take the values of an integer grid."""

import dataclasses
import functools
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import InputError
from tfcompress.wrappers.learned import (
    NARROWEST,
    START,
    Stop,
    divided,
    learn_clipping,
    learn_step,
    learned_weight,
    width_of,
)
from tfcompress.wrappers.rounding import codes_of, grid_of, round_as, straight_through


@keras.saving.register_keras_serializable("tfcompress")
class FakeQuantize(keras.layers.Layer):
    """Rounds a tensor to the values of an integer grid, with straight-through gradient.

    Returns the rounded tensor and its grid, float64 of shape (2,), the distance of two codes and
    the int8 code of 0, from which the layers that follow learn in what steps their inputs come.

    Up to 8 bits the codes are those of int8, `(high - low) / (2**bits - 1)` apart: of a tensor that
    is known to be >= 0 the last 2**bits of them, so that int8 itself clips it; of another one the
    first, and past `high` it goes on to the end of int8, as in the file. More bits: int16, and the
    grid is symmetric; of 9 to 15 bits only training rounds to so few codes, since the file's int16
    has them all over the same range.

    While training, the range follows the batches' extremes by an exponential moving average, or
    stays, or is learned; the first batch, or `calibrate`, gives its start. It always contains 0. At
    inference, and when the layer is not `trainable`, it stays; before there is one, the tensor
    passes unchanged.

    Args:
        bounds: a fixed (low, high), where TFLite prescribes one (softmax: 0, 255/256).
        nonnegative: the tensor is known to be >= 0 (after a ReLU): the lower bound stays 0.
        only_inference: pass the tensor unchanged in training. For probabilities that the model puts
            out: rounded to multiples of 1/256 they would give the loss log(0) and no gradient.
        momentum: weight of the old range in the moving average, in [0, 1); None: the range stays.
        bits: in [2, 16].
        learn: "lsq" or "pact": `width`, high - low over that of the start, times 0.1, is trainable;
            where 0 lies in the range stays. By "lsq" the step size moves, for SGD as if it were the
            variable itself, its gradient scaled by 1 / sqrt(values per sample * largest code); by
            "pact" the bound, with what is clipped.
        penalty: of "pact": `penalty * (high - low)**2` is added to the loss.
        rounding: a word of `rounding.ROUNDINGS`: the integer kernel whose result the tensor is and
            as which it is rounded at inference; of a concatenation one for each of its tensors.

    Call arguments: the tensor, and what the kernel made it of.

    (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3.1; Esser et al. 2020, "Learned step size
    quantization"; Choi et al. 2018, "PACT: Parameterized clipping activation")

    >>> quantizer = FakeQuantize()
    >>> y, bounds = quantizer(keras.ops.convert_to_tensor([[0.0, 0.3, 2.55]]), training=True)
    """

    def __init__(
        self,
        bounds: tuple[float, float] | None = None,
        nonnegative: bool = False,
        only_inference: bool = False,
        momentum: float | None = 0.99,
        bits: int = 8,
        learn: str | None = None,
        penalty: float = 0.0,
        rounding: str | list[str] = "nearest",
        **kwargs: Any,
    ):
        # Ranges and rounding are float32 under every dtype policy; the tensor keeps its own.
        super().__init__(autocast=False, **(kwargs | {"dtype": "float32"}))
        self._convert_input_args = False
        self.bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        self.nonnegative = nonnegative
        self.only_inference = only_inference
        self.momentum = momentum
        self.bits = bits
        self.learn = learn
        self.penalty = penalty
        self.rounding = rounding
        self.observer: Any = None
        self.stop = Stop()

    def build(self, inputs_shape: Any, parts_shape: Any = None) -> None:
        if self.bounds is not None:
            return
        # The point 0 stands for "no range yet". Replicas average what they saw.
        self.range = self.add_weight(
            shape=(2,),
            initializer="zeros",
            trainable=False,
            name="range",
            aggregation="mean",
        )
        if self.learn is not None:
            self.width = learned_weight(self, (), "width", self.stop)

    @property
    def learns(self) -> bool:
        """Whether training moves the range by its gradient."""
        return self.learn is not None and self.bounds is None

    @property
    def follows(self) -> bool:
        """Whether training moves the range with the batches."""
        return self.bounds is None and self.learn is None and self.momentum is not None

    def start(self, low: float, high: float) -> None:
        """Sets the range from which training starts."""
        self.range.assign([low, high])
        if self.learn is not None:
            self.width.assign(START)
            self.width_held.assign(START)

    def call(self, inputs: Any, parts: Any = None, training: bool | None = None) -> tuple[Any, Any]:
        x = tf.cast(inputs, tf.float32)
        trains = training and (self.trainable or self.bounds is not None)
        grid = self._grid_at(*self._range(), None if trains else self._stored_bits)
        y = x
        if self.observer is not None:
            grid = self._grid_at(*self.observer(x, *self._extremes(x)))
        elif training and self.bounds is not None:
            y = x if self.only_inference else grid.round(x)
        elif training and self.trainable:
            y, grid = self._trained(x, grid)
        else:
            # Not tf.cond, which takes longer to trace and to compile than what it would save.
            y = tf.where(grid.low < grid.high, grid.round(x, self.rounding, parts), x)
        return (inputs if y is x else tf.cast(y, inputs.dtype)), grid.tensor

    def compute_output_spec(self, inputs: Any, parts: Any = None, training: Any = None) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype), keras.KerasTensor((2,), "float64")

    def quantization(self) -> tuple[float, float, int]:
        """Returns the range (low, high) that int8, or above 8 bits int16, covers; and the bits.

        Fewer bits have larger steps, not fewer codes of the file's integers.
        """
        low, high = self._range()
        if not float(low) < float(high):
            raise InputError(
                f"Quantizer '{self.name}' must have a range before the model is converted: "
                "give quantize_aware samples, or train the model for at least one step."
            )
        grid = self._grid_at(low, high, self._stored_bits)
        if self.bits > 8:
            return -32767.0 * float(grid.step), 32767.0 * float(grid.step), self.bits
        return float(grid.bounds[0]), float(grid.bounds[1]), self.bits

    def exported(self) -> keras.layers.Layer:
        """Returns the layer with its range as constants, as the TFLite converter reads it."""
        low, high, bits = self.quantization()
        return _ConstantRange((low, high), wide=bits > 8, name=self.name, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "bounds": self.bounds,
            "nonnegative": self.nonnegative,
            "only_inference": self.only_inference,
            "momentum": self.momentum,
            "bits": self.bits,
            "learn": self.learn,
            "penalty": self.penalty,
            "rounding": self.rounding,
        }

    def _range(self) -> tuple[Any, Any]:
        """Returns (low, high) as it is at the moment; (0, 0) stands for none."""
        if self.bounds is not None:
            return tf.constant(self.bounds[0]), tf.constant(self.bounds[1])
        low, high = tf.unstack(tf.convert_to_tensor(self.range))
        if self.learn is None:
            return low, high
        factor = tf.convert_to_tensor(self.width) / START
        return low * factor, high * factor

    @property
    def _stored_bits(self) -> int:
        return 16 if self.bits > 8 else self.bits

    def _grid_at(self, low: Any, high: Any, bits: int | None = None) -> "_Grid":
        return _Grid(low, high, bits or self.bits, self.nonnegative)

    def _extremes(self, x: Any) -> tuple[Any, Any]:
        low = tf.constant(0.0) if self.nonnegative else tf.minimum(tf.reduce_min(x), 0.0)
        return low, tf.maximum(tf.reduce_max(x), low + NARROWEST)

    def _trained(self, x: Any, grid: "_Grid") -> tuple[Any, "_Grid"]:
        """Returns the tensor rounded, and its grid, after the range has moved."""
        if self.learn is not None:
            low, high = tf.unstack(tf.convert_to_tensor(self.range))
            start = tf.maximum(high - low, NARROWEST)
            width = width_of(tf.convert_to_tensor(self.width), start)
            if self.learn == "pact" and self.penalty:
                self.add_loss(self.penalty * tf.square(width))
            function = learn_step if self.learn == "lsq" else learn_clipping
            levels = tf.constant(float(_levels(self.bits)))
            return function(x, width, *grid.codes, levels), grid
        if self.momentum is not None:
            grid = self._grid_at(*self._followed(x))
        return grid.round(x), grid

    def _followed(self, x: Any) -> tuple[Any, Any]:
        seen = tf.stack(self._extremes(tf.stop_gradient(x)))
        old = tf.convert_to_tensor(self.range)
        share = tf.where(old[0] < old[1], 1.0 - (self.momentum or 0.0), 1.0)
        new = old + tf.where(self.stop.reached(), 0.0, share) * (seen - old)
        self.range.assign(new)
        return tf.unstack(new)


@dataclasses.dataclass(frozen=True, eq=False)
class _Grid:
    """A range that contains 0 and the codes that lie in it; what nobody asks for is not traced."""

    low: Any
    high: Any
    bits: int
    nonnegative: bool

    @functools.cached_property
    def step(self) -> Any:
        """The distance of two codes."""
        levels = float(_levels(self.bits))
        if self.bits > 8:
            return divided(tf.maximum(-self.low, self.high), levels / 2)
        return divided(self.high - self.low, levels)

    @functools.cached_property
    def bounds(self) -> tuple[Any, Any]:
        """The range that 256 codes cover."""
        if self.bits > 8:
            return -128.0 * self.step, 127.0 * self.step
        if self.bits == 8:
            return self.low, self.high
        first = _levels(self.bits) - 255.0 if self.nonnegative else -self._below
        return first * self.step, (first + 255.0) * self.step

    @functools.cached_property
    def codes(self) -> tuple[Any, Any]:
        """The lowest and the highest code that are used, counted from that of 0."""
        levels = float(_levels(self.bits))
        if self.bits > 8:
            return tf.constant(-levels / 2), tf.constant(levels / 2)
        highest = tf.constant(levels) if self.nonnegative else 255.0 - self._below
        return -self._below, highest

    @functools.cached_property
    def tensor(self) -> Any:
        """The grid as other layers read it; what they make of it, as a bias, does not teach it."""
        return tf.stop_gradient(grid_of(*self.bounds))

    @functools.cached_property
    def _below(self) -> Any:
        return tf.round(tf.math.divide_no_nan(-self.low, self.step))

    def round(self, x: Any, rounding: str | list[str] | None = None, parts: Any = None) -> Any:
        if self.bits > 8:
            return _round_to_codes(x, self.step, *self.codes)
        if rounding is None:
            return _round_to_grid(x, *self.bounds)
        rounded = round_as(x, codes_of(self.tensor), rounding, parts)
        return straight_through(tf.clip_by_value(x, *self.bounds), rounded)


def _levels(bits: int) -> int:
    """Returns the number of steps between the first and the last code."""
    return 2**bits - 1 if bits <= 8 else 2**bits - 2


@keras.saving.register_keras_serializable("tfcompress")
class OnGrid(keras.layers.Layer):
    """Rounds a tensor to a grid that is given: `call(x, grid)`.

    For layers whose integer output must have their input's scale but whose arithmetic leaves the
    grid, as the mean of an average pooling does. Halves, which are frequent in means of few codes,
    are rounded as TFLite's kernels do: code -0.5 becomes -1, code 0.5 becomes 1. In the file it
    holds the tensor on that grid; the converter would take that of a concatenation below.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **(kwargs | {"dtype": "float32"}))
        self._convert_input_args = False

    def build(self, x_shape: Any, grid_shape: Any = None) -> None:
        pass

    def call(self, x: Any, grid: Any) -> Any:
        return _to_nearest_code(x, *codes_of(grid))

    def compute_output_spec(self, x: Any, grid: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def quantization(self) -> tuple[float, float, int]:
        """Returns the range and the bits of the `FakeQuantize` whose grid it is given."""
        _, grid = self._inbound_nodes[0].arguments.args
        return grid._keras_history.operation.quantization()

    def exported(self) -> keras.layers.Layer:
        low, high, bits = self.quantization()
        return _ConstantRange((low, high), wide=bits > 8, name=self.name, dtype="float32")


class _ConstantRange(keras.layers.Layer):
    """The quantizer in the graph that the converter gets."""

    def __init__(self, bounds: tuple[float, float], wide: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.bounds = bounds
        self.wide = wide

    def call(self, inputs: Any) -> Any:
        y = tf.quantization.fake_quant_with_min_max_vars(
            tf.cast(inputs, tf.float32),
            *self.bounds,
            num_bits=16 if self.wide else 8,
            narrow_range=self.wide,
        )
        return tf.cast(y, inputs.dtype)

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype)


@tf.custom_gradient
def _round_to_grid(x: Any, low: Any, high: Any) -> Any:
    # The stock gradient also sums the gradients of both bounds, which nobody uses here.
    y = tf.quantization.fake_quant_with_min_max_vars(x, low, high)

    def gradient(upstream: Any) -> Any:
        inside = tf.logical_and(x >= low, x <= high)
        return tf.where(inside, upstream, tf.zeros_like(upstream)), None, None

    return y, gradient


@tf.custom_gradient
def _round_to_codes(x: Any, width: Any, lowest: Any, highest: Any) -> Any:
    position = tf.math.divide_no_nan(x, width)
    y = tf.where(width > 0.0, tf.clip_by_value(tf.round(position), lowest, highest) * width, x)

    def gradient(upstream: Any) -> Any:
        inside = tf.logical_and(position >= lowest, position <= highest)
        return tf.where(inside, upstream, tf.zeros_like(upstream)), None, None, None

    return y, gradient


@tf.custom_gradient
def _to_nearest_code(x: Any, scale: Any, zero_point: Any) -> Any:
    wide = tf.cast(x, tf.float32)
    code = tf.math.divide_no_nan(wide, scale) + zero_point
    # A half may be a float error below it; no mean of less than 1,000 codes is as close to it.
    code = tf.sign(code) * tf.floor(tf.abs(code) + 0.5005)
    y = tf.where(scale > 0.0, (code - zero_point) * scale, wide)
    return tf.cast(y, x.dtype), lambda upstream: (upstream, None, None)
