"""Quantization-aware training: a model that computes in floats what its int8 file will compute."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import graph, projection
from tfcompress.data.samples import to_arrays
from tfcompress.errors import InputError, require, unknown
from tfcompress.quantization import RANGES, Codes
from tfcompress.structured.fold import norms_to_fold, scale_and_offset
from tfcompress.weights import kernels
from tfcompress.wrappers.canonical import canonical
from tfcompress.wrappers.fake_quantize import FakeQuantize, OnGrid
from tfcompress.wrappers.insertion import Insertion
from tfcompress.wrappers.quantized_layer import QuantizedLayer
from tfcompress.wrappers.settings import BATCH_NORM, Settings, resolve
from tfcompress.wrappers.support import reason_for_float

_CALIBRATION_BATCH = 32


def quantize_aware(
    model: keras.Model,
    scheme: str = "int8",
    samples: Any = None,
    rules: Sequence[Mapping[str, Any]] = (),
    *,
    quantize: str = "both",
    bits: int | None = None,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    weights: str | None = None,
    ranges: Any = None,
    weight_ranges: Any = None,
    learn: str | None = None,
    penalty: float | None = None,
    batch_norm: str = "fold",
) -> keras.Model:
    """Returns a new model that trains with the rounding of its int8 file; `model` stays as it was.

    The new model is one flat graph: nested models are inlined, BatchNorm is folded into its
    neighbours, kernels and biases are rounded inside `QuantizedLayer`, activations by
    `FakeQuantize` wherever the file holds a quantized tensor. Gradients pass straight through. It
    has to be compiled, trains with plain `fit`, keeps the zeros and the shared values of its
    kernels while it does, is saved and loaded as `.keras`, and `convert` needs no samples for it.

    Train it with a tenth of the float model's learning rate or less: its BatchNorm is gone. With
    `batch_norm="train"` it trains as the float model did: see below.

    A layer that TFLite cannot compute in integers stays float; `tfc.wrappers.skipped(model)` lists
    them with the reason.

    Args:
        model: a built Keras 3 model that `graph.functional` can read.
        scheme: "int8".
        samples: the inputs from which the activations' ranges start, an array (n, ...), a list of
            arrays for several inputs, or a `tf.data.Dataset`. Without them the first training
            batch gives the start; `learn` and ranges that stay need them.
        rules: mappings {"layers": REGEX, "skip": REASON} or {"layers": REGEX, ...} with any of the
            words below from `bits` to `learn`, and granularity: "per_channel" or "per_tensor". One
            that matches no kernel speaks of layers without, as ReLU, Add or LayerNormalization.
            Without a rule, a Dense kernel has one scale, so that 16 shared values stay 16 codes,
            and a convolution one per output channel.
        quantize: "both", or "weights" or "activations" alone.
        bits: of kernels and activations, in [2, 16]; above 8, activations are int16 and kernels
            int8, for which `convert` needs the scheme "mixed". The model's inputs and outputs keep
            at least 8 bits unless a rule names the layer.
        weight_bits: of kernels, in [2, 8]; activation_bits: of activations, in [2, 16].
        weights: kernels that are "binary" (+-mean |w|) or "ternary".
        ranges: which range of an activation the samples give: a name or method of
            `quantization.RANGES`. By min_max (default) and ema, ranges follow the training batches
            by a moving average; by percentile, mse, entropy and sigma they clip, and stay.
        weight_ranges: of kernels: min_max (default) follows max|w|, one that clips stays.
        learn: "lsq": the step sizes of kernels and activations are trained; "pact": the clipping
            bounds of activations are. Ranges only give the start.
        penalty: of "pact", 1e-4 by default: L2 penalty of the clipping bounds, at least 0.
        batch_norm: "fold", or "train": a BatchNorm behind a convolution (or another kernel with a
            scale per channel) goes on seeing the batches and is folded only where the model is
            evaluated or exported. Its factor scales a channel's steps and leaves the codes alone,
            so that the file computes what was trained. `FreezeQuantization(statistics_step=...)`
            stops its statistics. Kernels are clustered before they meet it: with `grid="int8"`.

    Raises:
        InputError: unknown words, bits out of range, words that contradict; a rule that matches
            nothing; samples that are missing or do not fit; an activation that is to stay in or
            learn a range and is 0 for all samples; a binary kernel with zeros; a model that is not
            built, holds NaN, or cannot be read as a graph.

    (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference"; Esser et al. 2020, "Learned step size quantization"; Choi et
    al. 2018, "PACT: Parameterized clipping activation")

        model = tfc.quantize_aware(model, samples=x_train[:200])
        model.compile(keras.optimizers.Adam(1e-4), loss="sparse_categorical_crossentropy")
        model.fit(x_train, y_train, epochs=2)
        flatbuffer = tfc.convert(model, scheme="int8")

        model = tfc.quantize_aware(model, bits=4, learn="lsq", samples=x_train[:200],
                                   rules=[{"layers": "head", "bits": 8}])
    """
    words = Settings(
        bits, weight_bits, activation_bits, weights, None, ranges, weight_ranges, learn
    )
    quantized, methods = _structure(model, scheme, words, rules, quantize, penalty, batch_norm)
    if samples is not None and quantize != "weights":
        calibrate(quantized, samples, methods)
    elif samples is None:
        for quantizer in filter(_is_calibrated, quantized.layers):
            needs = quantizer.learn is not None or quantizer.momentum is None
            rule = "must be given where ranges are learned or stay (learn, or ranges that clip)"
            require(not needs, "samples of quantize_aware", rule, quantizer=quantizer.name)
    return quantized


def uncalibrated(
    model: keras.Model,
    scheme: str = "int8",
    rules: Sequence[Mapping[str, Any]] = (),
    quantize: str = "both",
    penalty: float | None = None,
    batch_norm: str = "fold",
    **words: Any,
) -> keras.Model:
    """Returns what `quantize_aware` does before ranges start: to check words, or load weights."""
    return _structure(model, scheme, Settings(**words), rules, quantize, penalty, batch_norm)[0]


def _structure(
    model: keras.Model,
    scheme: str,
    default: Settings,
    rules: Sequence[Mapping[str, Any]],
    quantize: str,
    penalty: float | None,
    batch_norm: str,
) -> tuple[keras.Model, dict[str, Any]]:
    """Returns the new model, and by name of each quantizer the method of its range."""
    if scheme != "int8":
        raise unknown("scheme of quantize_aware", scheme, ["int8"])
    if batch_norm not in BATCH_NORM:
        raise unknown("batch_norm of quantize_aware", batch_norm, BATCH_NORM)
    settings = resolve(model, default, quantize, rules)
    penalty = _penalty(penalty, [default, *(found for found, _ in settings.values())])
    _check_weights(model)
    require(
        not any(isinstance(x, FakeQuantize | QuantizedLayer) for x in model._flatten_layers()),
        f"Model '{model.name}'",
        "is quantization-aware already: make the float model so, or train this one on",
    )
    flat, origins = graph.flatten(model)
    by_name = _by_name(origins, settings)
    skips = {name: reason for name, (_, reason) in by_name.items() if reason is not None}
    # A factor of 0 leaves nothing that could be unfolded.
    norms = norms_to_fold(flat) if batch_norm == "train" else {}
    norms = {name: norm for name, norm in norms.items() if scale_and_offset(norm)[0].all()}
    insertion = Insertion(*canonical(flat, skips), default, by_name, quantize, penalty, norms)
    quantized = graph.rebuild(insertion.model, insertion.call)
    _check_heard(by_name, origins, {id(kernel.layer) for kernel in kernels(model)}, insertion.heard)
    for layer, norm in insertion.unfolded:
        layer.unfold(norm)
    for layer, own in insertion.clipped:
        layer.start(own.weight_ranges or "min_max")
    projection.preserve(quantized)
    return quantized, insertion.methods


def _check_heard(
    settings: Mapping[str, Any], origins: Mapping[str, Any], holders: set[int], heard: set[str]
) -> None:
    """Refuses rules for the range of a layer that has none of its own."""
    for name, (_, reason) in settings.items():
        inside = {id(layer) for layer in origins[name]._flatten_layers()}
        require(
            reason is not None or name in heard or inside & holders,
            f"Rule for '{name}'",
            "must be `skip`, or be left out: its output has the range of what it reads, or it "
            "becomes several operators",
        )


def _penalty(given: float | None, settings: Sequence[Settings]) -> float:
    if given is None:
        return 1e-4
    used = any(found.learn == "pact" for found in settings)
    require(used, "penalty of quantize_aware", "needs learn='pact'", penalty=given)
    valid = isinstance(given, int | float) and np.isfinite(given) and given >= 0
    require(valid, "penalty of quantize_aware", "must be at least 0", penalty=given)
    return float(given)


def skipped(model: keras.Model) -> dict[str, str]:
    """Returns, by name, the layers and operations of a quantized model left float, and why.

    >>> model = keras.Sequential([keras.Input((8, 3)), keras.layers.Masking(name="mask")])
    >>> skipped(quantize_aware(model))
    {'mask': 'masks that come with the data are not simulated'}
    """
    reasons = {
        node.operation.name: reason_for_float(node)
        for node in graph.nodes(model)
        if not isinstance(node.operation, FakeQuantize | OnGrid)
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def calibrate(model: keras.Model, samples: Any, methods: Mapping[str, Any] | None = None) -> None:
    """Starts the ranges of a quantized model, in place, at what the samples give.

    `methods`: by name of a quantizer its method of `quantization.RANGES`; without one, min_max.
    """
    names = [tensor._keras_history.operation.name for tensor in model.inputs]
    arrays = to_arrays(samples, model.inputs, names)
    quantizers = list(filter(_is_calibrated, model.layers))
    observers = [_Observer(q, (methods or {}).get(q.name, "min_max")) for q in quantizers]
    operators = [layer for layer in model.layers if hasattr(layer, "observing")]
    for observer in observers:
        observer.quantizer.observer = observer
    for operator in operators:
        operator.observing = True
    try:
        for start in range(0, len(arrays[0]), _CALIBRATION_BATCH):
            batch = [array[start : start + _CALIBRATION_BATCH] for array in arrays]
            model(keras.tree.pack_sequence_as(model._inputs_struct, batch), training=False)
    finally:
        for observer in observers:
            observer.quantizer.observer = None
        for operator in operators:
            operator.observing = False
    dead = [observer.quantizer.name for observer in observers if not observer.start()]
    if dead:
        warnings.warn(
            f"Activations of model '{model.name}' are 0 for all samples: {', '.join(dead)}. Their "
            "ranges start with the first batch that is not.",
            stacklevel=3,
        )


def _is_calibrated(layer: Any) -> bool:
    return isinstance(layer, FakeQuantize) and layer.bounds is None


class _Observer:
    """Sees what a quantizer is given, and starts its range."""

    def __init__(self, quantizer: FakeQuantize, method: Any):
        self.quantizer = quantizer
        self._method = RANGES.create(method)
        self._state: Any = None
        self._low, self._high = 0.0, 0.0

    def __call__(self, x: Any, low: Any, high: Any) -> tuple[Any, Any]:
        """Returns the extremes so far, in whose steps the biases below are rounded meanwhile."""
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        try:
            self._state = self._method.observe(x.numpy().reshape(1, -1), self._state)
        except InputError as error:
            raise InputError(f"Range of '{self.quantizer.name}': {error}") from None
        return tf.constant(self._low, tf.float32), tf.constant(self._high, tf.float32)

    def start(self) -> bool:
        """Sets the range; returns False for a tensor that was 0 all the time."""
        quantizer = self.quantizer
        wide = quantizer.bits > 8
        codes = Codes(quantizer.bits, symmetric=wide, narrow=wide)
        low, high = (float(end[0]) for end in self._method.bounds(self._state, codes))
        low = 0.0 if quantizer.nonnegative and not wide else low
        moves = quantizer.momentum is not None and quantizer.learn is None
        rule = "must not be 0 for all samples where its range is learned or stays"
        require(low < high or moves, f"Activation '{quantizer.name}'", rule)
        if low < high:
            quantizer.start(low, high)
        return low < high


def _by_name(origins: Mapping[str, Any], settings: Mapping[int, Any]) -> dict[str, Any]:
    """Returns settings by name of the flat model's layers; one with layers inside takes theirs."""
    found: dict[str, Any] = {}
    for name, layer in origins.items():
        inside = [settings[id(x)] for x in layer._flatten_layers() if id(x) in settings]
        if inside:
            reasons = [reason for _, reason in inside if reason is not None]
            found[name] = inside[-1][0], reasons[0] if reasons else None
    return found


def _check_weights(model: keras.Model) -> None:
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(variable)
        require(
            value.dtype.kind != "f" or np.isfinite(value).all(),
            f"Weights of model '{model.name}'",
            "must be finite",
            weight=variable.path,
        )
