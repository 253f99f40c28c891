"""Bias correction: the mean error that quantized weights cause is taken out of layers' biases."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import graph, rules, weights
from tfcompress.data.samples import to_arrays
from tfcompress.errors import InputError, require, unknown
from tfcompress.quantization import granularity as granularities
from tfcompress.quantization.grid import Codes
from tfcompress.quantization.rounding import ROUNDINGS
from tfcompress.structured.bias_errors import Layers, by_samples
from tfcompress.structured.equalize import followed
from tfcompress.structured.fold import can_fold, fold_batch_norm
from tfcompress.structured.groups import channel_groups
from tfcompress.structured.normal_flow import by_statistics
from tfcompress.structured.removal import keep_channels

METHODS = ("empirical", "analytic")


@dataclasses.dataclass(frozen=True)
class BiasCorrection:
    """What `correct_bias` did; `str()` is a table.

    `shifts`: by layer, how far quantized weights moved the means of its output channels (before
    the activation), as root mean square over the channels, relative to that of the outputs: the
    share that has been taken out. `skipped`: why other layers with kernels were not corrected.
    `rounding`: for which rounding of the kernels; "" where they were given, `quantized`.
    """

    method: str
    shifts: dict[str, float]
    skipped: dict[str, str]
    rounding: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as numbers, strings and dicts, fit for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [f"{self.method}: {len(self.shifts)} layers corrected", "   shift  layer"]
        rows += [f"{shift:8.2%}  {layer}" for layer, shift in self.shifts.items()]
        rows += [f"skipped: {layer}: {reason}" for layer, reason in self.skipped.items()]
        return "\n".join(rows)


def correct_bias(
    model: keras.Model,
    samples: Any = None,
    quantized: keras.Model | None = None,
    *,
    method: str = "empirical",
    bits: int = 8,
    granularity: Any = "per_channel",
    ranges: Any = "min_max",
    rounding: Any = "nearest",
    rules: Sequence[Mapping[str, Any]] = (),
    batch_size: int = 64,
) -> keras.Model:
    """Returns the model with biases that make up for the mean error of quantized weights.

    `model` stays as it is; the new one has the same float kernels and other biases, so that its
    layers' outputs have the right means once its kernels are quantized as said here. With
    `quantized`, the same model with weights that are quantized already, by whatever method, the new
    model has its weights and corrected biases. Layers without a bias get one; the model is of the
    same kind, plain Keras, not compiled. Without `quantized`, a BatchNorm that a neighbour can
    absorb is folded first (then it is flat), as it is in a `.tflite` file. Its attribute
    `bias_correction`, a `BiasCorrection`, says what was corrected and what not, and why.

    For a layer y = W x + b with quantized weights Q, both before the activation,

        empirical   b' = b + mean(W x + b) - mean(Q x' + b)     over samples and positions
        analytic    b' = b + W E[x] - Q E[x']

    x' are the inputs that the quantized model sees, whose layers up to here are corrected already:
    layer after layer. Analytic needs no data: E[x] comes from the BatchNorm before it, which says
    that a channel is normal with mean beta and deviation gamma, through the activation (the moments
    of the clipped normal, for relu and relu6; by quadrature for others), sums and averages; x' has
    the variance that rounding leaves. The BatchNorms are `model`'s, or those that
    `fold_batch_norm` and `equalize` have folded. Samples, if given, say only what mean and variance
    the inputs have; without, the layers that read them stay. Behind a max pooling nothing is known.

    A layer that is called in several places is corrected by what its first call sees.

    Args:
        samples: inputs, as `convert` takes them; at most 1,000 are read, and what the layers make
            of them is kept in memory as long as it is needed.
        bits: of the weights, in [2, 16].
        granularity: "per_tensor", "per_channel", or another of `tfcompress.quantization`.
        ranges, rounding: how the weights' range is found and how they are rounded, by name.
        rules: mappings {"layers": REGEX, "skip": REASON} for kernels that stay float, or with
            `bits`, `granularity`, `ranges` or `rounding` of their own.
        batch_size: samples that run at once.

    Raises:
        InputError: samples missing or not fit for the model, values out of range, a rule that
            matches nothing, a `quantized` of another structure, nothing that could be corrected.

    Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", section 4.2 and appendices B to D.

        model = tfc.correct_bias(model, x_train[:200], bits=4)
        print(model.bias_correction)
    """
    _check(model, method, samples, batch_size)
    if quantized is None:
        source = followed(fold_batch_norm(model) if can_fold(model) else model)
        target = source
    else:
        source, target = followed(model), followed(quantized)
    flat, _ = graph.flatten(source)
    other, origins = graph.flatten(target)
    values = {"bits": bits, "granularity": granularity, "ranges": ranges, "rounding": rounding}
    if quantized is None:
        replaced = _rounded(target, origins, flat, values, rules)
    else:
        require(not rules, "rules of correct_bias", "must be empty where `quantized` is given")
        replaced = _weights_of(other, flat)
    run = Layers(flat, replaced)
    names = [tensor.name for tensor in flat.inputs]
    arrays = None if samples is None else to_arrays(samples, flat.inputs, names)
    if method == "empirical":
        errors, reasons = by_samples(run, arrays or [], batch_size)
    else:
        errors, reasons = by_statistics(run, arrays, getattr(source, "pre_activations", {}))
    paths = weights.origin_paths(target, origins)
    if not errors:
        why = "; ".join(f"{paths[name]}: {reason}" for name, reason in reasons.items())
        raise InputError(f"Model '{model.name}' must have a layer that can be corrected. {why}")
    biases = {id(origins[name]): error.shift for name, error in errors.items()}
    new = keep_channels(channel_groups(target), {}, biases=biases)
    new.bias_correction = BiasCorrection(
        method,
        {paths[name]: error.relative for name, error in errors.items()},
        {paths[name]: reason for name, reason in reasons.items()},
        "" if quantized is not None else str(rounding),
    )
    return new


def _check(model: Any, method: Any, samples: Any, batch_size: Any) -> None:
    require(isinstance(model, keras.Model), "A model", "must be a Keras 3 model", model=model)
    if method not in METHODS:
        raise unknown("method of correct_bias", method, METHODS)
    rule = 'must be given: the empirical method runs the model on them (or method="analytic")'
    require(method == "analytic" or samples is not None, "samples of correct_bias", rule)
    whole = isinstance(batch_size, int) and batch_size >= 1
    rule = "must be a whole number of at least 1"
    require(whole, "batch_size of correct_bias", rule, batch_size=batch_size)


def _rounded(
    model: keras.Model,
    origins: Mapping[str, keras.layers.Layer],
    flat: keras.Model,
    values: Mapping[str, Any],
    given: Sequence[Mapping[str, Any]],
) -> dict[int, np.ndarray]:
    """Returns the quantized kernels by `id` of the flat model's variables; `model`'s are read."""
    found = weights.kernels(model)
    resolved = rules.resolve(given, found, values)
    by_kernel = {}
    for kernel in found:
        rule = resolved[kernel.path]
        if "skip" not in rule:
            by_kernel[id(kernel.variable)] = _quantized(kernel, **{**values, **rule})
    replaced = {}
    for name, layer in origins.items():
        for variable, old in zip(flat.get_layer(name).variables, layer.variables, strict=True):
            if id(old) in by_kernel:
                replaced[id(variable)] = by_kernel[id(old)]
    return replaced


def _quantized(
    kernel: weights.Kernel, bits: int, granularity: Any, ranges: Any, rounding: Any
) -> np.ndarray:
    method = ROUNDINGS.create(rounding)
    if getattr(method, "needs_inputs", False):
        rule = "must not need a layer's inputs (round first and give the model as `quantized`)"
        raise InputError(f"rounding of correct_bias {rule}. Received: rounding={rounding!r}")
    value = kernel.value()
    axes = kernel.output_axes
    fitted = granularities.fit(value, axes, granularity, ranges, Codes(bits), method)
    return fitted.dequantize(granularities.quantize(value, fitted, method))


def _weights_of(quantized: keras.Model, flat: keras.Model) -> dict[int, np.ndarray]:
    """Returns the weights of `quantized` by `id` of the variable of `flat` that each stands for."""
    ours, theirs = flat.variables, quantized.variables
    same = [tuple(v.shape) for v in ours] == [tuple(v.shape) for v in theirs]
    owner = f"quantized model '{quantized.name}'"
    rule = "must have the layers and weights of the model, in the same shapes"
    require(same, owner, rule, weights=len(theirs), expected=len(ours))
    return {
        id(variable): keras.ops.convert_to_numpy(other)
        for variable, other in zip(ours, theirs, strict=True)
    }
