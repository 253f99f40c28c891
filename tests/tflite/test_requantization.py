"""Kernels too large for the range of their outputs, which XNNPACK refuses to run."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from tfcompress import InputError, convert, quantize_aware
from tfcompress.silence import silent_stderr
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import interpreter

LAYERS = {
    "CONV_2D": keras.layers.Conv2D(4, 3),
    "DEPTHWISE_CONV_2D": keras.layers.DepthwiseConv2D(3),
    "TRANSPOSE_CONV": keras.layers.Conv2DTranspose(4, 3, use_bias=False),
    "FULLY_CONNECTED": keras.layers.Dense(4),
}


def file_with_ratio(kind, ratio):
    """Returns an int8 file whose one kernel has this largest ratio of scales."""
    layer = LAYERS[kind]
    model = keras.Sequential([keras.Input((6, 6, 4)), type(layer).from_config(layer.get_config())])
    samples = np.random.default_rng(0).normal(size=(8, 6, 6, 4)).astype(np.float32)
    file = fb.parse(convert(model, "int8", samples, keep_names=True))
    graph = file.subgraphs[0]
    (operator,) = [o for o in graph.operators if fb.operator_name(file, o) == kind]
    data = 2 if kind == "TRANSPOSE_CONV" else 0
    x, kernel, y = (
        graph.tensors[i] for i in (operator.inputs[data], operator.inputs[1], operator.outputs[0])
    )
    now = x.quantization.scale.max() * kernel.quantization.scale.max() / y.quantization.scale.max()
    y.quantization.scale = y.quantization.scale * np.float32(now / ratio)
    return fb.pack(file)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_ratio_that_xnnpack_refuses_is_named_and_one_below_runs(kind):
    interpreter.start(file_with_ratio(kind, 250.0))
    file = file_with_ratio(kind, 260.0)
    with pytest.raises(InputError, match=f"Operator .* {kind} .* below 256 .*= 260"):
        interpreter.start(file)
    interpreter.start(file, xnnpack=False)  # LiteRT's own kernels have no such limit
    with silent_stderr(), pytest.raises((RuntimeError, ValueError)):  # ... and XNNPACK has it
        Interpreter(model_content=file).allocate_tensors()


def test_weights_that_grew_after_their_ranges_were_found_are_refused_by_the_name_of_the_layer():
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="stem"), keras.layers.Conv2D(4, 3)]
    )
    samples = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    trained = quantize_aware(model, samples=samples)
    for variable in trained.weights:
        if variable.path.endswith("kernel"):
            variable.assign(variable * 1e6)
    with pytest.raises(InputError, match="stem.* must have a ratio of scales"):
        convert(trained)
