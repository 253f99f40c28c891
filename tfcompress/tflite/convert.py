"""A Keras model -> a small `.tflite` file that was run and compared before it is handed out."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import graph, pooling
from tfcompress.data.samples import spread, to_arrays
from tfcompress.errors import InputError
from tfcompress.models import check_finite
from tfcompress.tflite import converter, interpreter, loops, markers, nchw, post_training
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.audit import Audit, audit
from tfcompress.tflite.compare import compare
from tfcompress.tflite.request import Request
from tfcompress.tflite.slim import slim

# Relative error of the outputs above which a file computes something else: rounding explains
# less. Random inputs, used where no samples are given, may lie far from what the model knows.
_GROSS = {"float32": 0.01, "float16": 0.1, "sparse": 0.01, "int4": 1.0, "mixed": 1.0}
_GROSS_INTEGERS = 0.6
_EXACT = ("float32", "sparse")
_NARROWEST = 2.1e-6  # the width of the range that the converter gives to what is always 0
_FLOATS = ("float32", "float16", "dynamic")  # schemes whose activations are no integers
_COMPARED = 64


def convert(
    model: keras.Model,
    scheme: str = "int8",
    samples: Any = None,
    keep_names: bool = False,
    *,
    rounding: Any = None,
    ranges: Any = None,
    weight_ranges: Any = None,
    granularity: Any = None,
    rules: Sequence[Mapping[str, Any]] = (),
    activations: str | None = None,
    target: str = "xnnpack",
    search_ranges: bool = False,
) -> bytes:
    """Returns the model as the content of a `.tflite` file; the model stays as it is.

    The batch is fixed to 1. The file is stripped of what no interpreter reads (`slim`), run on
    LiteRT's default interpreter and compared with the Keras model before it is returned.

    Args:
        model: any built Keras 3 model (Sequential, functional, nested, subclassed; several inputs
            and outputs). Of a model made by `quantize_aware` the learned ranges are used.
        scheme: float32; float16 (weights); dynamic (int8 weights, float activations); int8 (full
            integer: int8 in, int8 out); int16x8 (int16 activations, int8 weights); int4 (full
            integer: 4-bit weights where they cost no time, int8 for the rest, see `target`);
            mixed (each layer as `rules` say, int8 without a rule); sparse (float32, kernels that
            are mostly zeros stored without them: fewer bytes, and faster where
            `sparse_inference_report` says so).
        samples: what the integer schemes take the activations' ranges from, as the model sees it:
            an array (n, ...), a list of arrays for several inputs, or a `tf.data.Dataset`,
            batched or not, with or without labels; at most 1,000 samples are read, of longer
            arrays 1,000 spread over all. Not needed after `quantize_aware`. The comparison uses 64
            of them, or random inputs.
        keep_names: leave the inner tensors' names in the file.
        rounding: a name or method of `quantization.ROUNDINGS`, which chooses the weights' integers:
            nearest, truncate, stochastic, max_plus_one, kmeans, or adaround (needs samples).
        ranges: of activations, weight_ranges: of weights; of `quantization.RANGES`: min_max, ema,
            percentile, mse, entropy, sigma.
        granularity: per_channel, per_tensor, or for int4 with dynamic activations
            {"blocks": {"size": 32}} (32, 64, 128 or 256 inputs of a FULLY_CONNECTED share a scale).
        rules: mappings {"layers": REGEX, ...} on the path of layer or kernel, the last match wins.
            Keys: rounding, weight_ranges, granularity; for mixed also scheme (float32, float16,
            dynamic, int8, int16x8, int4), activations, or instead of all {"skip": REASON}: float.
        activations: of int4 layers: int8, dynamic (floats that the kernel quantizes itself) or
            float32 (weights are unpacked before they are used: fewer bytes, slower).
        target: whom int4 is for. xnnpack: 4 bits for matrix products, 1x1 convolutions included,
            which become FULLY_CONNECTED (over maps of more than 1,024 places they keep 8 bits:
            much time, few bytes). tflm: 4 bits for convolutions, which is what TFLite Micro
            computes. reference: 4 bits wherever LiteRT has a kernel at all, fast or not. A layer
            that a rule gives int4 has it wherever there is a kernel.
        search_ranges: then widen and narrow each activation's range as the file's outputs come
            nearer to float's on the samples, a few hundred of them. All of them run some ten times
            for each tensor.

    Raises:
        InputError: unknown words; weights or samples that are not finite; samples missing, too few
            or of another shape; rules that contradict or match nothing; a granularity that no file
            can hold; a model that the converter refuses (its log is named in the message); a file
            whose outputs are not finite or have nothing to do with the model's.

    Where integers are computed, recurrent layers over a fixed number of steps are unrolled, and
    average pooling over a whole map is a MEAN, whose codes need not be those of the map.

    A layer that cannot be what was asked for is named in a warning with what it is instead and why;
    a layer without an integer kernel is left float. `audit` shows what the file holds.

        flatbuffer = tfc.convert(model, scheme="int8", samples=x_train[:200])
        flatbuffer = tfc.convert(model, scheme="int4", samples=x_train[:200], rounding="adaround")
        flatbuffer = tfc.convert(model, scheme="mixed", samples=x_train[:200],
                                 rules=[{"layers": "block_1.*", "scheme": "float16"}])
    """
    request = Request(
        scheme,
        rounding,
        ranges,
        weight_ranges,
        granularity,
        rules,
        activations,
        target,
        search_ranges,
    )
    check_finite(model)
    in_floats = request.plain and scheme not in ("int8", "int16x8")
    inference, drawn = _inference(model, in_floats)
    specs = converter.input_specs(inference, samples)
    names = [spec.name for spec in specs]
    arrays = None if samples is None else to_arrays(samples, specs, names)
    notes: list[str] = []
    _check_learned(model, scheme)
    # For int16x8 TensorFlow's converter wants ranges of integers like tokens, which have none, and
    # makes no biases of learned ranges.
    odd = any(spec.dtype.is_integer for spec in specs)
    odd = odd or any(map(markers.is_range, model._flatten_layers()))
    found_here = scheme == "int16x8" and odd
    found_here = found_here or scheme != "sparse" and _holds_codes(model)
    if request.plain and not found_here:
        content = _converted(model, inference, specs, scheme, arrays)
        if scheme in ("int8", "int16x8") and arrays is not None:
            # Of some operators that it leaves float, as NEG, there are integer forms.
            dead = _has_dead_tensors(content)
            if dead or (scheme == "int8" and not audit(content).full_integer):
                other, found = _quantized(model, inference, drawn, specs, request, arrays)
                better = dead or audit(other).full_integer
                content, notes = (other, found) if better else (content, notes)
    else:
        content, notes = _quantized(model, inference, drawn, specs, request, arrays)
    content = slim(_name_ends(content, model, inference, specs), keep_names)
    _verify(model, content, scheme, arrays)
    if scheme == "sparse":
        _check_layout(model, content)
    notes += [_shortfall(audit(content), scheme)] if request.plain or not notes else []
    for note in filter(None, notes):
        warnings.warn(f"Model '{model.name}' as {scheme} {note}", stacklevel=2)
    return content


def _has_dead_tensors(content: bytes) -> bool:
    """Returns whether the converter has found tensors that are 0 for all samples: it gives them so
    narrow a range that what other inputs make of them is lost, and XNNPACK may refuse."""
    file = fb.parse(content)
    main = file.subgraphs[0]
    running = {int(i) for op in main.operators or [] for i in op.outputs} | set(main.inputs)
    found = [main.tensors[number] for number in running]
    widths = {"INT8": 255, "INT16": 65535}
    return any(
        len(fb.scales(t)) == 1 and fb.scales(t)[0] * widths[fb.type_name(t)] < _NARROWEST
        for t in found
        if fb.type_name(t) in widths
    )


def _holds_codes(model: keras.Model) -> bool:
    """Returns whether a trained model has kernels whose codes the converter would not find."""
    layers = model._flatten_layers()
    learned = [layer for layer in layers if markers.is_learned(layer)]
    ranged = any(markers.is_range(layer) for layer in model._flatten_layers())
    return any(not getattr(x, "found_by_converter", True) for x in learned) or (
        bool(learned) and not ranged
    )


def _check_learned(model: keras.Model, scheme: str) -> None:
    """Refuses a scheme that has no place for what a model has learned in training."""
    layers = model._flatten_layers()
    kernels = any(map(markers.is_learned, layers))
    bits = {x.name: x.quantization()[2] for x in layers if markers.is_range(x)}
    wide = [name for name, number in bits.items() if number > 8]
    if scheme == "sparse" and (bits or kernels) or scheme in _FLOATS and bits:
        rule, why = "int8, int4 or mixed", "quantize_aware made it"
    elif wide and (scheme in ("int8", "int4") or scheme == "int16x8" and len(wide) < len(bits)):
        rule, why = "mixed", f"'{wide[0]}' was trained with more than 8 bits"
    elif bits and not wide and scheme == "int16x8":
        rule, why = "int8, int4 or mixed", "it was trained with activations of up to 8 bits"
    else:
        return
    raise InputError(
        f"Scheme of model '{model.name}' must be {rule}: {why}. Received: scheme={scheme!r}"
    )


def _converted(
    model: keras.Model,
    inference: keras.Model,
    specs: Sequence[tf.TensorSpec],
    scheme: str,
    arrays: Sequence[np.ndarray] | None,
) -> bytes:
    """Returns the file whose integers the TFLite converter finds."""
    function = converter.concrete(inference, specs)
    operations = converter.operations(function)
    # A model with learned ranges says itself, in its graph, what they are.
    trained = any(name.startswith("FakeQuant") for name in operations)
    if scheme in ("int8", "int16x8") and arrays is None and not trained:
        raise InputError(
            f"Scheme {scheme} needs samples (a command: --data) to take the activations' ranges "
            "from, unless quantize_aware has trained these too. Received: none"
        )
    calibration = None if trained and scheme == "int8" else arrays
    if calibration is not None and scheme.startswith("int"):
        loops.check(model, operations, scheme)
    return converter.converted(model, function, scheme, calibration)


def _quantized(
    model: keras.Model,
    inference: keras.Model,
    drawn: bool,
    specs: Sequence[tf.TensorSpec],
    request: Request,
    arrays: Sequence[np.ndarray] | None,
) -> tuple[bytes, list[str]]:
    """Returns the file whose integers are found here, and notes on what it could not hold."""
    if not drawn:
        content = converter.converted(model, converter.concrete(inference, specs), "float32", None)
        marked, units = markers.unmarked(content), []
    else:
        marker = markers.Marker(model, inference)
        function = marker.function(specs)
        loops.check(model, converter.operations(function), request.scheme)
        marked = marker.read(converter.converted(model, function, "float32", None))
        units = markers.units(model)
    content, shortfalls = post_training.quantized(model, marked, units, request, arrays)
    if not shortfalls:
        return content, []
    return content, [f"could not hold all: {'; '.join(map(str, shortfalls))}"]


def _inference(model: keras.Model, in_floats: bool) -> tuple[keras.Model, bool]:
    """Returns the model without training apparatus, in float32, and whether it draws a graph.

    Unless the file computes in floats, its recurrent layers are unrolled, and average pooling over
    whole maps is a mean.
    """
    try:
        if in_floats:
            return graph.exported(model), True
        return pooling.with_means(graph.exported(model, loops.unrolled)), True
    except InputError:
        if any(hasattr(layer, "exported") for layer in model._flatten_layers()):
            raise
        return model, False  # a `call` that draws no Keras graph may still draw a TensorFlow graph


def _shortfall(found: Audit, scheme: str) -> str:
    """Returns what the file leaves in float against its scheme, "" if nothing."""
    if scheme in ("int8", "int16x8") and not found.full_integer:
        names = dict.fromkeys(found.float_operators)
        culprits = [name for name in names if name not in ("QUANTIZE", "DEQUANTIZE")]
        return (
            f"is not full integer: {', '.join(culprits or names)} computes in float, for which "
            "TFLite has no integer kernel here. With a word such as ranges='min_max' the layer is "
            "named"
        )
    kept = [f"{w.name} ({w.size:,} weights)" for w in found.weights if w.dtype == "FLOAT32"]
    if scheme == "dynamic" and kept:
        return f"keeps small kernels, of less than 1,024 weights, in float: {', '.join(kept)}"
    if scheme == "sparse" and "DENSIFY" not in found.operators:
        return "stores no kernel sparse: none has enough zeros. Prune the model first"
    return ""


def _name_ends(
    content: bytes, model: keras.Model, inference: keras.Model, specs: Sequence[tf.TensorSpec]
) -> bytes:
    """Gives the file's inputs and outputs the names that they have in the user's model."""
    flatbuffer = fb.parse(content)
    graph = flatbuffer.subgraphs[0]
    inputs = [spec.name for spec in specs]
    # Only a functional model names its outputs; that of others are their graph's last layers.
    outputs = getattr(model, "output_names", None) or getattr(inference, "output_names", None) or []
    for names, indices in ((outputs, graph.outputs), (inputs, graph.inputs)):
        if len(names) == len(set(indices)) == len(indices):
            for name, index in zip(names, indices, strict=True):
                graph.tensors[index].name = name
    return fb.pack(flatbuffer)


def _check_layout(model: keras.Model, content: bytes) -> None:
    """Refuses files that are wrong only where XNNPACK's sparse kernels run, which is not here."""
    nodes = nchw.nodes(content)
    for part in nchw.parts(content, nodes):
        if part.complete and part.sparse_enough and part.leaks:
            names = {node.number: node.name for node in nodes}
            leak = ", ".join(f"{number} {names[number]}" for number in part.leaks)
            raise InputError(
                f"Model '{model.name}' as sparse would fail on ARM: XNNPACK's sparse kernels do "
                f"not hand out the result of operator {leak}. sparse_inference_report names the "
                "layer; the scheme float32 is safe."
            )


def _verify(
    model: keras.Model, content: bytes, scheme: str, samples: Sequence[np.ndarray] | None
) -> None:
    engine = interpreter.start(content)
    if samples is None:
        inputs = interpreter.noise(engine, 8)
    else:
        inputs = [spread(array, _COMPARED) for array in samples]
    found = interpreter.run(content, inputs)
    for output in found if isinstance(found, list) else [found]:
        if not np.all(np.isfinite(output)):
            raise InputError(
                f"Model '{model.name}' as {scheme} computes NaN or infinity on "
                f"{'random inputs' if samples is None else 'the samples'}."
            )
    # One step of the output's grid is no error.
    step = max(float(detail["quantization"][0]) for detail in engine.get_output_details())
    result = compare(model, content, inputs)
    limit = _GROSS.get(scheme, _GROSS_INTEGERS) * (
        1.0 if samples is not None or scheme in _EXACT else 1.5
    )
    if result.relative_error > limit and result.max_abs_error > 2 * step + 1e-5:
        raise InputError(
            f"Model '{model.name}' as {scheme} computes something else than the Keras model: "
            f"relative error {result.relative_error:.2g} on "
            f"{'random inputs' if samples is None else 'the samples'} (limit {limit:.2g})."
        )
