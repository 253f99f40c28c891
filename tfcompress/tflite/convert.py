"""A Keras model -> a small `.tflite` file that was run and compared before it is handed out."""

import contextlib
import logging
import os
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import graph
from tfcompress.data.samples import to_arrays
from tfcompress.errors import InputError, unknown
from tfcompress.models import check_finite
from tfcompress.silence import silent_stderr
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import interpreter, nchw
from tfcompress.tflite.audit import Audit, audit
from tfcompress.tflite.compare import arrange, compare
from tfcompress.tflite.slim import slim

SCHEMES = ("float32", "float16", "dynamic", "int8", "int16x8", "sparse")
# Relative error of the outputs above which a file computes something else: rounding explains
# less. Random inputs, used where no samples are given, may lie far from what the model knows.
_GROSS = {
    "float32": 0.01, "float16": 0.1, "dynamic": 0.6, "int8": 0.6, "int16x8": 0.6, "sparse": 0.01
}  # fmt: skip
_EXACT = ("float32", "sparse")
_COMPARED = 64
_LOOPS = {"While", "StatelessWhile"}


def convert(
    model: keras.Model, scheme: str = "int8", samples: Any = None, keep_names: bool = False
) -> bytes:
    """Returns the model as the content of a `.tflite` file; the model stays as it is.

    The batch is fixed to 1. The file is stripped of what no interpreter reads (`slim`), run on
    LiteRT's default interpreter and compared with the Keras model before it is returned.

    Args:
        model: any built Keras 3 model (Sequential, functional, nested, subclassed; several inputs
            and outputs). Of a model made by `quantize_aware` the learned ranges are used.
        scheme: float32; float16 (weights); dynamic (int8 weights, float activations); int8 (full
            integer: int8 in, int8 out); int16x8 (int16 activations, int8 weights); sparse (float32,
            kernels that are mostly zeros stored without them: fewer bytes, and faster where
            `sparse_inference_report` says so).
        samples: what int8 and int16x8 take the activations' ranges from, as the model sees it:
            an array (n, ...), a list of arrays for several inputs, or a `tf.data.Dataset`,
            batched or not, with or without labels; at most 1,000 samples are read. Not needed
            after `quantize_aware`. The comparison uses 64 of them, or random inputs.
        keep_names: leave the inner tensors' names in the file.

    Raises:
        InputError: unknown scheme; weights or samples that are not finite; samples missing or of
            another shape; a model that the converter refuses (its log is named in the message);
            a file whose outputs are not finite or have nothing to do with the model's.

    A layer without an integer kernel is left float; a warning names its operators, as does
    `audit`.

        flatbuffer = tfc.convert(model, scheme="int8", samples=x_train[:200])
    """
    if scheme not in SCHEMES:
        raise unknown("scheme", scheme, SCHEMES)
    check_finite(model)
    inference = _inference(model)
    specs = input_specs(inference, samples)
    names = [spec.name for spec in specs]
    arrays = None if samples is None else to_arrays(samples, specs, names)
    function = _concrete(inference, specs)
    operations = _operations(function)
    # A model with learned ranges says itself, in its graph, what they are.
    trained = any(name.startswith("FakeQuant") for name in operations)
    if scheme in ("int8", "int16x8") and arrays is None and not trained:
        raise InputError(
            f"Scheme {scheme} needs samples (a command: --data) to take the activations' ranges "
            "from, unless the model was trained by quantize_aware. Received: none"
        )
    calibration = None if trained and scheme == "int8" else arrays
    if calibration is not None and scheme.startswith("int") and _LOOPS & operations:
        raise InputError(  # the converter would end the process with a segmentation fault
            f"Model '{model.name}' must be free of loops for {scheme}: build its recurrent layers "
            "with unroll=True."
        )
    content = _convert(model, function, scheme, calibration)
    content = slim(_name_ends(content, model, inference, specs), keep_names)
    _verify(model, content, scheme, arrays)
    if scheme == "sparse":
        _check_layout(model, content)
    shortfall = _shortfall(audit(content), scheme)
    if shortfall:
        warnings.warn(f"Model '{model.name}' as {scheme} {shortfall}", stacklevel=2)
    return content


def _shortfall(found: Audit, scheme: str) -> str:
    """Returns what the file leaves in float against its scheme, "" if nothing."""
    if scheme in ("int8", "int16x8") and not found.full_integer:
        names = ", ".join(dict.fromkeys(found.float_operators))
        return f"is not full integer. Float operators: {names}"
    kept = [f"{w.name} ({w.size:,} weights)" for w in found.weights if w.dtype == "FLOAT32"]
    if scheme == "dynamic" and kept:
        return f"keeps small kernels, of less than 1,024 weights, in float: {', '.join(kept)}"
    if scheme == "sparse" and "DENSIFY" not in found.operators:
        return "stores no kernel sparse: none has enough zeros. Prune the model first"
    return ""


def _inference(model: keras.Model) -> keras.Model:
    """Returns the model without training apparatus, in float32."""
    try:
        return graph.exported(model)
    except InputError:
        if any(hasattr(layer, "exported") for layer in model._flatten_layers()):
            raise
        return model  # a `call` that draws no Keras graph may still draw a TensorFlow graph


def input_specs(model: keras.Model, samples: Any = None) -> list[tf.TensorSpec]:
    """Returns shape (batch 1), dtype and name of each of the model's inputs, in order."""
    inputs = getattr(model, "inputs", None) or _inputs_of_subclassed(model)
    specs = []
    for index, tensor in enumerate(inputs):
        name = re.sub(r"\W", "_", tensor.name or f"input_{index}")
        shape = (1, *tensor.shape[1:])
        if None in shape[1:]:
            shape = _complete(shape, samples, index, name)
        specs.append(tf.TensorSpec(shape, keras.backend.standardize_dtype(tensor.dtype), name))
    return specs


def _inputs_of_subclassed(model: keras.Model) -> list[keras.KerasTensor]:
    config = model.get_build_config() if model.built else None
    shapes = (config or {}).get("input_shape") or (config or {}).get("shapes_dict")
    if not shapes:
        raise InputError(f"Model '{model.name}' must be built: call it once on a batch of inputs.")
    if isinstance(shapes, dict):
        shapes = list(shapes.values())
    if isinstance(shapes[0], int) or shapes[0] is None:
        shapes = [shapes]
    dtype = model.input_dtype if "float" in str(model.input_dtype) else "float32"
    return [
        keras.KerasTensor(tuple(shape), dtype, name=f"input_{index}")
        for index, shape in enumerate(shapes)
    ]


def _complete(shape: tuple, samples: Any, index: int, name: str) -> tuple[int, ...]:
    """Takes sizes that the model leaves open from the samples, if they are arrays."""
    parts = samples if isinstance(samples, list | tuple) else [samples]
    found = np.shape(parts[index]) if index < len(parts) else ()
    if len(found) != len(shape):
        raise InputError(
            f"Input '{name}' must have fixed sizes but for the batch, or samples as arrays that "
            f"fix them. Received: shape={shape}"
        )
    return tuple(
        s if want is None else want for want, s in zip(shape, (1, *found[1:]), strict=True)
    )


def _concrete(model: keras.Model, specs: Sequence[tf.TensorSpec]) -> Any:
    def call(*inputs):
        return keras.tree.flatten(model(arrange(model, inputs), training=False))

    function = tf.function(call, input_signature=list(specs), autograph=False)
    return function.get_concrete_function()


def _operations(function: Any) -> set[str]:
    """Returns the names of the graph's operations, those of inner functions too."""
    definition = function.graph.as_graph_def()
    inner = [node for part in definition.library.function for node in part.node_def]
    return {node.op for node in (*definition.node, *inner)}


def _convert(
    model: keras.Model,
    function: Any,
    scheme: str,
    samples: Sequence[np.ndarray] | None,
) -> bytes:
    with _one_sentence(model, scheme):
        return _converter(function, scheme, samples).convert()


def _converter(
    function: Any, scheme: str, samples: Sequence[np.ndarray] | None
) -> tf.lite.TFLiteConverter:
    # With the model as second argument the variables of a Keras 3 model stay unfrozen.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    if scheme == "sparse":  # with DEFAULT beside it the files do not load
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    elif scheme != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme == "int16x8":
        kinds = tf.lite.OpsSet
        converter.target_spec.supported_ops = [
            kinds.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
            kinds.TFLITE_BUILTINS,
        ]
    if scheme in ("int8", "int16x8"):
        integer = tf.int8 if scheme == "int8" else tf.int16
        converter.inference_input_type = converter.inference_output_type = integer
    if scheme in ("int8", "int16x8") and samples is not None:
        converter.representative_dataset = _one_by_one(samples)
    return converter


def _one_by_one(samples: Sequence[np.ndarray]) -> Callable[[], Iterator[list[np.ndarray]]]:
    def generate() -> Iterator[list[np.ndarray]]:
        for row in zip(*samples, strict=True):
            yield [value[np.newaxis] for value in row]

    return generate


@contextlib.contextmanager
def _one_sentence(model: keras.Model, scheme: str) -> Iterator[None]:
    """Silences the converter; what it says goes to a log that is kept if it fails."""
    handle, log = tempfile.mkstemp(prefix="tfcompress-convert-", suffix=".log")
    os.close(handle)
    level = logging.getLogger("absl").level
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        with silent_stderr(log), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(open(os.devnull, "w")):  # noqa: SIM115
                yield
    except Exception as error:
        with open(log, "a") as file:
            traceback.print_exc(file=file)
        raise InputError(
            f"Model '{model.name}' cannot be converted to {scheme}: {_reason(str(error))} "
            f"(the converter's log: {log})"
        ) from None
    else:
        os.unlink(log)
    finally:
        logging.getLogger("absl").setLevel(level)


def _reason(message: str) -> str:
    operators = re.findall(r"^(?:TF Select|Custom) ops: (.*)$", message, re.MULTILINE)
    if operators:
        return f"LiteRT has no kernel for {', '.join(operators)}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return (lines[0] if lines else "no reason given")[:300]


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
    inputs = interpreter.noise(engine, 8) if samples is None else [a[:_COMPARED] for a in samples]
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
    limit = _GROSS[scheme] * (1.0 if samples is not None or scheme in _EXACT else 1.5)
    if result.relative_error > limit and result.max_abs_error > 2 * step + 1e-5:
        raise InputError(
            f"Model '{model.name}' as {scheme} computes something else than the Keras model: "
            f"relative error {result.relative_error:.2g} on "
            f"{'random inputs' if samples is None else 'the samples'} (limit {limit:.2g})."
        )
