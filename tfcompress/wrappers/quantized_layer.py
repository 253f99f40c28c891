"""One wrapper for any layer with a kernel: it computes with weights that int8 can hold."""

import math
from typing import Any

import keras
import tensorflow as tf

from tfcompress import graph
from tfcompress.quantization import snap
from tfcompress.wrappers.fake_quantize import step

# Layers whose kernel TFLite holds in int8: its variable, and the axes of its output channels.
_LAYERS = keras.layers
KERNELS: dict[type, tuple[str, tuple[int, ...]]] = {
    _LAYERS.Dense: ("kernel", (1,)),
    _LAYERS.Conv1D: ("kernel", (2,)),
    _LAYERS.Conv2D: ("kernel", (3,)),
    _LAYERS.DepthwiseConv1D: ("kernel", (1, 2)),
    _LAYERS.DepthwiseConv2D: ("kernel", (2, 3)),
    _LAYERS.Conv1DTranspose: ("kernel", (1,)),
    _LAYERS.Conv2DTranspose: ("kernel", (2,)),
    _LAYERS.PReLU: ("alpha", ()),
}


@keras.saving.register_keras_serializable("tfcompress")
class QuantizedLayer(keras.layers.Wrapper):
    """Computes `layer` with its kernel and bias rounded to what the int8 file will hold.

    The wrapped layer and its variables stay as they are: inside `call` its variables are mapped to
    rounded values, and what it writes to its state there is carried out. The gradient passes
    straight through the rounding.

        kernel: 255 values from -max|w| to max|w|, per output channel or per tensor
        bias:   multiples of (scale of the inputs) * (scale of the kernel)

    Args:
        layer: one of `KERNELS`.
        per_channel: one scale per output channel, or one for the kernel.

    Call arguments: the inputs, and the range that their `FakeQuantize` returned with them.
    Returns the outputs and, per output channel, the steps of the integer sums that they stand for.
    """

    def __init__(self, layer: keras.layers.Layer, per_channel: bool = True, **kwargs: Any):
        # Rounding reads the variables themselves, in float32; the layer casts as its policy says.
        kwargs = {"name": layer.name} | kwargs | {"dtype": "float32"}
        super().__init__(layer, autocast=False, **kwargs)
        self._convert_input_args = False
        self.per_channel = per_channel

    def build(self, x_shape: Any, bounds_shape: Any = None) -> None:
        super().build(x_shape)

    def call(self, x: Any, bounds: Any) -> tuple[Any, Any]:
        kernel, axes = self._kernel()
        rounded, scale = _round_kernel(kernel.value, axes)
        mapping = {id(v): (v, v.value) for v in self.layer.variables}
        mapping[id(kernel)] = (kernel, rounded)
        channels = self._channels()
        scale = tf.broadcast_to(tf.reshape(scale, [-1]), [channels])
        bias = getattr(self.layer, "bias", None)
        if bias is not None:
            mapping[id(bias)] = (bias, _round_bias(bias.value, scale, step(bounds[0], bounds[1])))
        with keras.StatelessScope(list(mapping.values()), collect_losses=True) as scope:
            given = {key: scope.get_current_value(v) for key, (v, _) in mapping.items()}
            outputs = self.layer(x)
        for key, (variable, _) in mapping.items():
            value = scope.get_current_value(variable)
            if value is not given[key]:
                variable.assign(value)
        for loss in scope.losses:
            self.add_loss(loss)
        # PReLU multiplies but sums nothing up: no steps.
        is_sum = bool(_place(self.layer)[1])
        return outputs, tf.cast(step(bounds[0], bounds[1]), tf.float32) * scale * float(is_sum)

    def compute_output_spec(self, x: Any, bounds: Any) -> tuple[Any, Any]:
        sums = keras.KerasTensor((self._channels(),), "float32")
        return self.layer.compute_output_spec(x), sums

    def exported(self) -> keras.layers.Layer:
        """Returns the plain layer with its kernel on the grid: the converter finds the scales."""
        kernel, axes = self._kernel()
        plain = built_copy(self.layer)
        value = keras.ops.convert_to_numpy(kernel)
        getattr(plain, _place(plain)[0]).assign(snap(value, axes))
        if self.per_channel or not _place(plain)[1]:
            return plain
        return _PerTensor(plain, float(abs(value).max()))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"per_channel": self.per_channel}

    def _kernel(self) -> tuple[keras.Variable, tuple[int, ...]]:
        name, axes = _place(self.layer)
        return getattr(self.layer, name), axes if self.per_channel else ()

    def _channels(self) -> int:
        name, axes = _place(self.layer)
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


def kind(layer: Any) -> type | None:
    """Returns the key of `KERNELS` that the layer computes as, or None.

    A subclass counts as its base unless it has a `call` of its own.
    """
    for base in type(layer).__mro__:
        if base in KERNELS:
            same = getattr(type(layer), "call", None) is getattr(base, "call", None)
            return base if same else None
    return None


def _place(layer: keras.layers.Layer) -> tuple[str, tuple[int, ...]]:
    """Returns the name of the kernel's attribute and the axes of its output channels."""
    base = kind(layer)
    if base is None:
        raise TypeError(f"QuantizedLayer has no place for {layer!r}")
    return KERNELS[base]


def built_copy(layer: keras.layers.Layer, **changes: Any) -> keras.layers.Layer:
    """Returns the layer as the converter gets it, with its weights."""
    copy = graph.copy_operation(layer, **graph.in_float32(layer), **changes)
    copy.build_from_config(layer.get_build_config())
    copy.set_weights(layer.get_weights())
    return copy


def _round_kernel(kernel: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """Returns the kernel on its symmetric grid of 255 values, and the scale(s), broadcastable."""
    reduced = [axis for axis in range(len(kernel.shape)) if axis not in axes]
    scale = tf.reduce_max(tf.abs(kernel), reduced, keepdims=True) / 127.0
    return _round_straight_through(kernel, scale), tf.stop_gradient(scale)


@tf.custom_gradient
def _round_straight_through(kernel: Any, scale: Any) -> Any:
    # A channel of zeros has scale 0.
    y = tf.round(tf.math.divide_no_nan(kernel, scale)) * scale
    return y, lambda upstream: (upstream, None)


@tf.custom_gradient
def _round_bias(bias: Any, scale: Any, input_step: Any) -> Any:
    # In float64, as the converter: a code of the bias may have more digits than a float32.
    steps = input_step * tf.cast(scale, tf.float64)
    wide = tf.cast(bias, tf.float64)
    # A channel of zeros has no step, and no input has one before calibration: the bias stays.
    y = tf.where(steps > 0.0, tf.round(tf.math.divide_no_nan(wide, steps)) * steps, wide)
    return tf.cast(y, bias.dtype), lambda upstream: (upstream, None, None)
