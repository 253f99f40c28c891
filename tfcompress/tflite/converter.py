"""TensorFlow's converter: what it says goes to a log, its reason to the user."""

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

from tfcompress.errors import InputError
from tfcompress.silence import silent_stderr
from tfcompress.tflite.compare import arrange


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


def concrete(model: keras.Model, specs: Sequence[tf.TensorSpec]) -> Any:
    """Returns the model's graph at inference as a concrete function."""

    def call(*inputs):
        return keras.tree.flatten(model(arrange(model, inputs), training=False))

    function = tf.function(call, input_signature=list(specs), autograph=False)
    return function.get_concrete_function()


def operations(function: Any) -> set[str]:
    """Returns the names of the graph's operations, those of inner functions too."""
    definition = function.graph.as_graph_def()
    inner = [node for part in definition.library.function for node in part.node_def]
    return {node.op for node in (*definition.node, *inner)}


def converted(
    model: keras.Model,
    function: Any,
    scheme: str,
    samples: Sequence[np.ndarray] | None,
) -> bytes:
    """Returns the file that the converter makes of the function.

    Raises `InputError`, one sentence that names the converter's log, if it refuses.
    """
    with one_sentence(model, scheme):
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
def one_sentence(model: keras.Model, scheme: str) -> Iterator[None]:
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
