"""Fake quantization of activations: floats that only take the values of an int8 grid."""

import math
from typing import Any

import keras
import tensorflow as tf

from tfcompress.errors import InputError

# The narrowest range that is followed: a tensor of zeros still gets a grid.
_NARROWEST = 1e-6


@keras.saving.register_keras_serializable("tfcompress")
class FakeQuantize(keras.layers.Layer):
    """Rounds a tensor to the 256 values of an int8 grid, with straight-through gradient.

    Returns the rounded tensor and its range `(low, high)`, float32 of shape (2,), from which the
    layers that follow learn in what steps their inputs come.

    While training, the range follows the batches' extremes by an exponential moving average; the
    first batch, or `calibrate`, gives its start. It always contains 0. At inference, and when the
    layer is not `trainable`, the range stays; before it has one, the tensor passes unchanged.

    Args:
        bounds: a fixed (low, high), where TFLite prescribes one (softmax: 0, 255/256).
        nonnegative: the tensor is known to be >= 0 (after a ReLU): the lower bound stays 0.
        only_inference: pass the tensor unchanged in training. For probabilities that the model puts
            out: rounded to multiples of 1/256 they would give the loss log(0) and no gradient.
        momentum: weight of the old range in the moving average, in [0, 1).

    Call arguments: the tensor; and, of a tensor that comes from a layer with a kernel, the steps of
    its integer sums, (channels,), or of a product of two tensors both ranges: at inference they are
    rounded as the integer kernel rounds them.

    (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3.1)

    >>> quantizer = FakeQuantize()
    >>> y, bounds = quantizer(keras.ops.convert_to_tensor([[0.0, 0.3, 2.55]]), training=True)
    """

    def __init__(
        self,
        bounds: tuple[float, float] | None = None,
        nonnegative: bool = False,
        only_inference: bool = False,
        momentum: float = 0.99,
        **kwargs: Any,
    ):
        # Ranges and rounding are float32 under every dtype policy; the tensor keeps its own.
        super().__init__(autocast=False, **(kwargs | {"dtype": "float32"}))
        self._convert_input_args = False
        self.bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        self.nonnegative = nonnegative
        self.only_inference = only_inference
        self.momentum = momentum
        self.observing = False

    def build(self, inputs_shape: Any, sums_shape: Any = None) -> None:
        if self.bounds is None:
            # The point 0 stands for "no range yet". Replicas average what they saw.
            self.range = self.add_weight(
                shape=(2,),
                initializer="zeros",
                trainable=False,
                name="range",
                aggregation="mean",
            )

    def call(self, inputs: Any, sums: Any = None, training: bool | None = None) -> tuple[Any, Any]:
        x = tf.cast(inputs, tf.float32)
        if self.bounds is not None:
            low, high = tf.constant(self.bounds[0]), tf.constant(self.bounds[1])
            y = x if training and self.only_inference else _round_to_grid(x, low, high)
        elif self.observing:
            low, high = self._widened(x)
            y = x
        elif training and self.trainable:
            low, high = self._followed(x)
            y = _round_to_grid(x, low, high)
        else:
            low, high = tf.unstack(tf.convert_to_tensor(self.range))
            products = isinstance(sums, list | tuple)
            round_ = _round_products if products else _round_sums
            round_ = _round_to_grid if sums is None else round_
            given = (x, low, high) if sums is None else (x, low, high, sums)
            y = tf.cond(low < high, lambda: round_(*given), lambda: x)
        return (inputs if y is x else tf.cast(y, inputs.dtype)), tf.stack([low, high])

    def compute_output_spec(self, inputs: Any, sums: Any = None, training: Any = None) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype), keras.KerasTensor((2,), "float32")

    def exported(self) -> keras.layers.Layer:
        """Returns the layer with its range as constants, as the TFLite converter reads it."""
        bounds = self.bounds
        if bounds is None:
            low, high = (float(x) for x in keras.ops.convert_to_numpy(self.range))
            if low >= high:
                raise InputError(
                    f"Quantizer '{self.name}' must have a range before the model is converted: "
                    "give quantize_aware samples, or train the model for at least one step."
                )
            bounds = (low, high)
        return _ConstantRange(bounds, name=self.name, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "bounds": self.bounds,
            "nonnegative": self.nonnegative,
            "only_inference": self.only_inference,
            "momentum": self.momentum,
        }

    def _extremes(self, x: Any) -> tuple[Any, Any]:
        low = tf.constant(0.0) if self.nonnegative else tf.minimum(tf.reduce_min(x), 0.0)
        return low, tf.maximum(tf.reduce_max(x), low + _NARROWEST)

    def _followed(self, x: Any) -> tuple[Any, Any]:
        seen = tf.stack(self._extremes(tf.stop_gradient(x)))
        old = tf.convert_to_tensor(self.range)
        share = tf.where(old[0] < old[1], 1.0 - self.momentum, 1.0)
        new = old + share * (seen - old)
        self.range.assign(new)
        return tf.unstack(new)

    def _widened(self, x: Any) -> tuple[Any, Any]:
        low, high = self._extremes(x)
        old = tf.convert_to_tensor(self.range)
        new = tf.stack([tf.minimum(old[0], low), tf.maximum(old[1], high)])
        self.range.assign(new)
        return tf.unstack(new)


@keras.saving.register_keras_serializable("tfcompress")
class OnGrid(keras.layers.Layer):
    """Rounds a tensor to the grid of a range that is given: `call(x, bounds)`.

    For layers whose integer output must have their input's scale but whose arithmetic leaves the
    grid, as the mean of an average pooling does. Halves, which are frequent in means of few codes,
    are rounded as TFLite's kernels do: code -0.5 becomes -1, code 0.5 becomes 1.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **(kwargs | {"dtype": "float32"}))
        self._convert_input_args = False

    def build(self, x_shape: Any, bounds_shape: Any = None) -> None:
        pass

    def call(self, x: Any, bounds: Any) -> Any:
        scale, zero_point = _grid(bounds[0], bounds[1])
        return _to_nearest_code(x, scale, zero_point)

    def compute_output_spec(self, x: Any, bounds: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def exported(self) -> keras.layers.Layer:
        return keras.layers.Identity(name=self.name, dtype="float32")


class _ConstantRange(keras.layers.Layer):
    """The quantizer in the graph that the converter gets."""

    def __init__(self, bounds: tuple[float, float], **kwargs: Any):
        super().__init__(**kwargs)
        self.bounds = bounds

    def call(self, inputs: Any) -> Any:
        y = tf.quantization.fake_quant_with_min_max_vars(tf.cast(inputs, tf.float32), *self.bounds)
        return tf.cast(y, inputs.dtype)

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def step(low: Any, high: Any) -> Any:
    """Returns the distance of two codes, float64, as the converter computes it from a range."""
    return (tf.cast(high, tf.float64) - tf.cast(low, tf.float64)) / 255.0


def _grid(low: Any, high: Any) -> tuple[Any, Any]:
    scale = step(low, high)
    zero_point = tf.round(-128.0 - tf.math.divide_no_nan(tf.cast(low, tf.float64), scale))
    return tf.cast(scale, tf.float32), tf.cast(zero_point, tf.float32)


def _round_sums(x: Any, low: Any, high: Any, sums: Any) -> Any:
    """Rounds sums of products as XNNPACK does, to the last bit.

    The float `x` tells the integer sum exactly; the kernel multiplies that by one float32 factor
    and rounds ties to even. Where the steps are 0 (a channel of zeros) `x` is rounded itself.
    """
    scale, zero_point = _grid(low, high)
    integers = tf.round(tf.math.divide_no_nan(x, sums))
    codes = tf.where(sums > 0.0, integers * (sums / scale), x / scale)
    codes = tf.clip_by_value(tf.round(codes), -128.0 - zero_point, 127.0 - zero_point)
    return codes * scale


def _round_products(x: Any, low: Any, high: Any, ranges: Any) -> Any:
    """Rounds sums of products of two tensors as TFLite's own kernel does: twice."""
    scale, zero_point = _grid(low, high)
    first, second = (tf.cast(step(bounds[0], bounds[1]), tf.float32) for bounds in ranges)
    steps = tf.cast(first * second, tf.float64)
    factor = steps / tf.cast(scale, tf.float64)
    exponent = tf.floor(tf.math.log(factor) / math.log(2.0)) + 1.0
    integers = tf.round(tf.cast(x, tf.float64) / steps) * 2.0 ** tf.maximum(exponent, 0.0)
    wide = tf.floor(integers * tf.round(factor * 2.0 ** (31.0 - exponent)) / 2.0**31 + 0.5)
    codes = tf.abs(wide) * 2.0 ** tf.minimum(exponent, 0.0)
    codes = tf.cast(tf.sign(wide) * tf.floor(codes + 0.5), tf.float32)
    codes = tf.clip_by_value(codes, -128.0 - zero_point, 127.0 - zero_point)
    return tf.cast(codes * scale, x.dtype)


@tf.custom_gradient
def _round_to_grid(x: Any, low: Any, high: Any) -> Any:
    # The stock gradient also sums the gradients of both bounds, which nobody uses here.
    y = tf.quantization.fake_quant_with_min_max_vars(x, low, high)

    def gradient(upstream: Any) -> Any:
        inside = tf.logical_and(x >= low, x <= high)
        return tf.where(inside, upstream, tf.zeros_like(upstream)), None, None

    return y, gradient


@tf.custom_gradient
def _to_nearest_code(x: Any, scale: Any, zero_point: Any) -> Any:
    wide = tf.cast(x, tf.float32)
    code = tf.math.divide_no_nan(wide, scale) + zero_point
    # A half may be a float error below it; no mean of less than 1,000 codes is as close to it.
    code = tf.sign(code) * tf.floor(tf.abs(code) + 0.5005)
    y = tf.where(scale > 0.0, (code - zero_point) * scale, wide)
    return tf.cast(y, x.dtype), lambda upstream: (upstream, None, None)
