"""One wrapper for any layer with a kernel: it computes with weights that int8 can hold."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import graph
from tfcompress.quantization import Codes, fit
from tfcompress.structured.fold import affine, scale_and_offset
from tfcompress.wrappers.kernel_layers import kernel_place
from tfcompress.wrappers.learned import Stop, divided, learn_kernel_step, learned_weight
from tfcompress.wrappers.rounding import in_steps, straight_through


@keras.saving.register_keras_serializable("tfcompress")
class QuantizedLayer(keras.layers.Wrapper):
    """Computes `layer` with its kernel and bias rounded to what the file will hold.

    The wrapped layer and its variables stay as they are: inside `call` its variables are mapped to
    rounded values, and what it writes to its state there is carried out. The gradient passes
    straight through the rounding.

        kernel: 2**bits - 1 values from -max|w| to max|w|, per output channel or per tensor; or two
                or three values
        bias:   multiples of (scale of the inputs) * (scale of the kernel)

    Args:
        layer: one of `kernel_layers.KERNELS`.
        per_channel: one scale per output channel, or one for the kernel.
        bits: of the kernel, in [2, 8].
        weights: "binary" (+-mean |w|) or "ternary" (Li et al. 2016) instead of a grid.
        clip: "fixed" or "learned": the grid reaches to `limit`, not to max|w|; learned by LSQ
            (Esser et al. 2020), the scale's gradient times 1 / sqrt(weights per scale * largest
            code).
        norm: the BatchNorm behind a layer with a bias and one scale per channel, which sees the
            batch in training. Else it is folded in, which multiplies the scales; the codes stay.

    Call arguments: the inputs, and the grid that their `FakeQuantize` returned with them; None
    where the inputs are floats, and the bias then stays float.
    Returns the outputs and, per output channel, the steps of the integer sums that they stand for.

    At inference the sums are taken of whole numbers, the codes of inputs, kernel and bias, and
    multiplied by their steps at the end: as long as they stay below 2**24 float32 has each to the
    last bit, in whatever order they are added up, as does hardware that multiplies with 11 bits
    (TF32). Larger ones, which take more than 518 products at the least, are rounded to 24 bits; so
    does XNNPACK before it scales them, but once. Training, half precision, an activity regularizer
    and an activation other than ReLU have the sums of scaled floats, off by some 1e-6 of their
    size.

    (Rastegari et al. 2016, "XNOR-Net"; Li et al. 2016, "Ternary weight networks"; Esser et al.
    2020, "Learned step size quantization")
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        per_channel: bool = True,
        bits: int = 8,
        weights: str | None = None,
        clip: str | None = None,
        norm: keras.layers.BatchNormalization | None = None,
        **kwargs: Any,
    ):
        # Rounding reads the variables themselves, in float32; the layer casts as its policy says.
        kwargs = {"name": layer.name} | kwargs | {"dtype": "float32"}
        super().__init__(layer, autocast=False, **kwargs)
        self._convert_input_args = False
        self.per_channel = per_channel
        self.bits = bits
        self.kernel_values = weights
        self.clip = clip
        self.norm = norm
        self.observing = False
        self.stop = Stop()

    @property
    def found_by_converter(self) -> bool:
        """Whether max|w| of the rounded kernel tells its scale, as TFLite's converter expects."""
        plain = self.kernel_values is None and self.clip is None and self.norm is None
        return self.bits == 8 and plain

    @property
    def learns(self) -> bool:
        """Whether training moves the scale by its gradient."""
        return self.clip == "learned"

    @property
    def follows(self) -> bool:
        """Whether the scale follows what a batch shows: it never does."""
        return False

    def build(self, x_shape: Any, grid_shape: Any = None) -> None:
        super().build(x_shape)
        if self.norm is not None and not self.norm.built:
            self.norm.build(self.layer.compute_output_shape(x_shape))
        shape = self._per_channel_shape()
        if self.clip == "learned":
            self.limit = learned_weight(self, shape, "limit", self.stop)
        elif self.clip == "fixed":
            self.limit = self.add_weight(
                shape=shape, initializer="ones", trainable=False, name="limit"
            )

    def start(self, ranges: Any) -> None:
        """Sets `limit` to the range that the method finds in the kernel."""
        kernel, axes = self._kernel()
        value = keras.ops.convert_to_numpy(kernel)
        codes = Codes(self.bits)
        limit = (fit(value, axes, ranges=ranges, codes=codes).scale * codes.highest).astype(
            "float32"
        )
        limit = limit.reshape(self.limit.shape)
        # A channel of zeros takes the step of another: its codes are 0 whatever it is.
        self.limit.assign(np.where(limit > 0, limit, limit.max() or 1.0))
        if self.clip == "learned":
            self.limit_held.assign(self.limit)

    def unfold(self, norm: keras.layers.BatchNormalization) -> None:
        """Takes a BatchNorm, which was folded into kernel and bias, out of them again.

        Where its factor is negative the channel changes its sign, so that all of the kernel's codes
        are the file's.
        """
        own: Any = self.norm
        own.set_weights(norm.get_weights())
        scale, offset = scale_and_offset(norm)
        for variable in [own.gamma, own.moving_mean] if own.scale else []:
            variable.assign(variable * np.sign(scale).astype(np.float32))
        kernel, _ = self._kernel()
        for variable, shape, beyond in (
            (kernel, self._per_channel_shape(), 0.0),
            (self.layer.bias, scale.shape, offset),
        ):
            divided = (variable.numpy() - beyond) / np.abs(scale).reshape(shape)
            variable.assign(divided.astype(np.float32))

    def call(self, x: Any, grid: Any = None, training: bool | None = None) -> tuple[Any, Any]:
        on_grid = self._on_grid()
        kernel, scale, exact = self._folded(*on_grid)
        bias = self._bias()
        channels = self._channels()
        normalizes = training and self.norm is not None
        if grid is None:
            y = self._normalized(x, on_grid[0]) if normalizes else self._computed(x, kernel, bias)
            return y, tf.zeros([channels])
        input_step = tf.cast(grid[0], tf.float64)
        scales = tf.broadcast_to(tf.reshape(scale, [-1]), [channels])
        sums = tf.cast(input_step, tf.float32) * scales
        if normalizes:
            return self._normalized(x, on_grid[0]), sums
        # No input has a step before calibration: it comes as it is.
        width = tf.where(input_step > 0.0, input_step, 1.0)
        # In float64, as the converter: a code of the bias may have more digits than a float32.
        units = width * tf.broadcast_to(tf.reshape(exact, [-1]), [channels])
        # A channel of zeros has no step either: its bias stays.
        units = tf.where(units > 0.0, units, 1.0)
        if bias is not None:
            bias = in_steps(tf.cast(bias, tf.float64), units, sums > 0.0)
        if training or self.observing or not self._sums_integers():
            bias = bias if bias is None else tf.cast(bias * units, tf.float32)
            # PReLU multiplies but sums nothing up: no steps.
            return self._computed(x, kernel, bias), sums * float(bool(kernel_place(self.layer)[1]))
        width = tf.cast(width, tf.float32)
        codes = in_steps(kernel, tf.where(scale > 0.0, scale, 1.0 / width), True)
        bias = bias if bias is None else tf.cast(bias, tf.float32)
        y = self._computed(in_steps(x, width, input_step > 0.0), codes, bias)
        return y * tf.where(scales > 0.0, width * scales, 1.0), sums

    def compute_output_spec(
        self, x: Any, grid: Any = None, training: Any = None
    ) -> tuple[Any, Any]:
        sums = keras.KerasTensor((self._channels(),), "float32")
        return self.layer.compute_output_spec(x), sums

    def quantization(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns the kernel's codes, int8 of its shape, their scale, which broadcasts, the bits.

        Two or three values are codes of 2 bits; a channel of zeros has scale 0 and codes 0.
        """
        rounded, scale, _ = (keras.ops.convert_to_numpy(x) for x in self._rounded())
        codes = np.divide(rounded, scale, out=np.zeros(rounded.shape), where=scale > 0)
        return np.rint(codes).astype(np.int8), scale, 2 if self.kernel_values else self.bits

    def exported(self) -> keras.layers.Layer:
        """Returns the plain layer with its kernel on the grid."""
        plain = built_copy(self.layer)
        if self.found_by_converter:  # by scales in float64, so that max|w| stays to the last bit
            variable, axes = self._kernel()
            kernel = keras.ops.convert_to_numpy(variable)
            reduced = tuple(axis for axis in range(kernel.ndim) if axis not in axes)
            limits = abs(kernel).max(reduced, keepdims=True).astype(np.float64)
            rounded, largest = self.quantization()[0] * (limits / 127.0), float(limits.max())
        else:
            rounded, scale, _ = (keras.ops.convert_to_numpy(x) for x in self._rounded())
            largest = 127.0 * float(scale.max())
            if self.norm is not None:
                plain.bias.assign(self._bias())
        getattr(plain, kernel_place(plain)[0]).assign(rounded)
        if self.per_channel or not kernel_place(plain)[1]:
            return plain
        return _PerTensor(plain, largest)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "per_channel": self.per_channel,
            "bits": self.bits,
            "weights": self.kernel_values,
            "clip": self.clip,
            "norm": self.norm and keras.saving.serialize_keras_object(self.norm),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedLayer":
        norm = keras.saving.deserialize_keras_object(config.get("norm"))
        return super().from_config(config | {"norm": norm})

    def _computed(self, x: Any, kernel: Any, bias: Any = None) -> Any:
        """Returns what the layer computes with these values in place of its variables'."""
        mapping = {id(v): (v, v.value) for v in self.layer.variables}
        variable, _ = self._kernel()
        mapping[id(variable)] = (variable, kernel)
        if bias is not None:
            mapping[id(self.layer.bias)] = (self.layer.bias, bias)
        with keras.StatelessScope(list(mapping.values()), collect_losses=True) as scope:
            given = {key: scope.get_current_value(v) for key, (v, _) in mapping.items()}
            outputs = self.layer(x)
        for key, (variable, _) in mapping.items():
            value = scope.get_current_value(variable)
            if value is not given[key]:
                variable.assign(value)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def _normalized(self, x: Any, kernel: Any) -> Any:
        """Returns what layer and BatchNorm make of a batch in training."""
        own: Any = self.norm
        return own(self._computed(x, kernel), training=True)

    def _sums_integers(self) -> bool:
        """Returns whether the layer computes steps times what it computes of integers."""
        layer = self.layer
        return (
            bool(kernel_place(layer)[1])
            and layer.compute_dtype == "float32"
            and layer.activity_regularizer is None
            and layer.activation in (keras.activations.linear, keras.activations.relu)
        )

    def _rounded(self) -> tuple[Any, Any, Any]:
        """Returns the kernel as the file will hold it, and its scale(s), broadcastable: in float32,
        and in float64 as those by which the file's bias is rounded."""
        return self._folded(*self._on_grid())

    def _folded(self, rounded: Any, scale: Any, exact: Any) -> tuple[Any, Any, Any]:
        """Returns what `_on_grid` gives with the BatchNorm in it, if there is one."""
        if self.norm is None:
            return rounded, scale, exact
        factor = tf.reshape(tf.cast(affine(self.norm)[0], tf.float32), self._per_channel_shape())
        scale *= tf.abs(factor)
        return rounded * factor, scale, tf.cast(scale, tf.float64)

    def _bias(self) -> Any:
        """Returns the bias as the file will hold it, not rounded yet; None without one."""
        bias = getattr(self.layer, "bias", None)
        if bias is None or self.norm is None:
            return None if bias is None else bias.value
        factor, offset = affine(self.norm)
        return tf.cast(tf.cast(bias.value, tf.float64) * factor + offset, tf.float32)

    def _on_grid(self) -> tuple[Any, Any, Any]:
        """Returns the same of the kernel alone, without its BatchNorm."""
        variable, axes = self._kernel()
        kernel = tf.convert_to_tensor(variable.value)
        reduced = [axis for axis in range(len(kernel.shape)) if axis not in axes]
        highest = float(Codes(self.bits).highest)
        if self.kernel_values is not None:
            rounded, scale = _few_values(kernel, reduced, self.kernel_values)
        elif self.clip is None:
            limit = tf.stop_gradient(tf.reduce_max(tf.abs(kernel), reduced, keepdims=True))
            scale = divided(limit, highest)
            # A channel of zeros has scale 0.
            rounded = tf.round(tf.math.divide_no_nan(kernel, scale)) * scale
            rounded = straight_through(kernel, rounded)
        else:
            limit = tf.convert_to_tensor(self.limit)
            # Where the limit is not trainable its gradient goes nowhere.
            rounded = learn_kernel_step(kernel, limit, tf.constant(highest))
            scale = tf.stop_gradient(divided(limit, highest))
        if self.found_by_converter:
            return rounded, scale, tf.cast(limit, tf.float64) / highest
        return rounded, scale, tf.cast(scale, tf.float64)

    def _kernel(self) -> tuple[keras.Variable, tuple[int, ...]]:
        name, axes = kernel_place(self.layer)
        return getattr(self.layer, name), axes if self.per_channel else ()

    def _per_channel_shape(self) -> tuple[int, ...]:
        """Returns the shape of one number per scale, which broadcasts to the kernel's."""
        kernel, axes = self._kernel()
        return tuple(n if axis in axes else 1 for axis, n in enumerate(kernel.shape))

    def _channels(self) -> int:
        name, axes = kernel_place(self.layer)
        shape = getattr(self.layer, name).shape
        return math.prod(shape[axis] for axis in axes)


@keras.saving.register_keras_serializable("tfcompress")
class KeptFloat(keras.layers.Wrapper):
    """A layer that a rule left in float, with the rule's reason."""

    def __init__(self, layer: keras.layers.Layer, reason: str, **kwargs: Any):
        super().__init__(layer, **({"name": layer.name} | kwargs))
        self.reason = reason

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs)

    def compute_output_spec(self, inputs: Any) -> Any:
        return self.layer.compute_output_spec(inputs)

    def exported(self) -> keras.layers.Layer:
        return built_copy(self.layer)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"reason": self.reason}


class _PerTensor(keras.layers.Wrapper):
    """A layer whose kernel the converter must not give a scale per channel."""

    def __init__(self, layer: keras.layers.Layer, largest: float):
        super().__init__(layer, name=layer.name, dtype="float32")
        # A kernel of zeros still needs a range.
        self.largest = largest or 1.0
        self.built = True

    def call(self, inputs: Any) -> Any:
        kernel = self.layer.kernel
        # In the graph itself, so that the converter takes this range for the whole kernel.
        rounded = tf.quantization.fake_quant_with_min_max_vars(
            kernel.value, -self.largest, self.largest, narrow_range=True
        )
        with keras.StatelessScope([(kernel, rounded)]):
            return self.layer(inputs)

    def compute_output_spec(self, inputs: Any) -> Any:
        return self.layer.compute_output_spec(inputs)


def built_copy(layer: keras.layers.Layer, **changes: Any) -> keras.layers.Layer:
    """Returns the layer as the converter gets it, with its weights."""
    copy = graph.copy_operation(layer, **graph.in_float32(layer), **changes)
    copy.build_from_config(layer.get_build_config())
    copy.set_weights(layer.get_weights())
    return copy


def _few_values(kernel: Any, reduced: list[int], values: str) -> tuple[Any, Any]:
    """Returns the kernel in two or three values, and their magnitude: `quantization.binary`,
    `quantization.ternary`; the gradient passes straight through."""
    magnitudes = tf.cast(tf.abs(kernel), tf.float64)
    mean = tf.reduce_mean(magnitudes, reduced, keepdims=True)
    if values == "binary":
        codes, alpha = tf.where(kernel >= 0.0, 1.0, -1.0), mean
    else:
        kept = magnitudes > 0.7 * mean
        codes = tf.where(kept, tf.sign(kernel), 0.0)
        count = tf.reduce_sum(tf.cast(kept, tf.float64), reduced, keepdims=True)
        total = tf.reduce_sum(tf.where(kept, magnitudes, 0.0), reduced, keepdims=True)
        alpha = tf.math.divide_no_nan(total, count)
    scale = tf.stop_gradient(tf.cast(alpha, tf.float32))
    return straight_through(kernel, codes * scale), scale
