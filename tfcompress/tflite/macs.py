"""Multiply-accumulates of a `.tflite` file, from its operators."""

import math

from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer as fb

# Operators that multiply by a kernel, and which of their inputs it is.
KERNEL_INPUT = {
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "FULLY_CONNECTED": 1,
    "TRANSPOSE_CONV": 1,
    "CONV_3D": 1,
    "BATCH_MATMUL": 1,
    "GATHER": 0,
    "EMBEDDING_LOOKUP": 1,
}


def macs(model: schema.ModelT, graph: schema.SubGraphT, operator: schema.OperatorT) -> int:
    """Returns the multiply-accumulates of one run of the operator; 0 for all that multiply no
    matrices. Zeros in the weights count: no kernel of LiteRT's skips them by default.
    """
    name = fb.operator_name(model, operator)
    if name not in KERNEL_INPUT or name in ("GATHER", "EMBEDDING_LOOKUP"):
        return 0
    inputs = [fb.shape(graph.tensors[i]) if i >= 0 else () for i in operator.inputs]
    output = math.prod(fb.shape(graph.tensors[operator.outputs[0]]))
    kernel = inputs[1]
    if name == "CONV_2D":  # (outputs, height, width, inputs of a group)
        return output * math.prod(kernel[1:])
    if name == "DEPTHWISE_CONV_2D":  # (1, height, width, outputs)
        return output * kernel[1] * kernel[2]
    if name == "FULLY_CONNECTED":  # (outputs, inputs)
        return output * kernel[-1]
    if name == "TRANSPOSE_CONV":  # (outputs, height, width, inputs); the input is the third
        return math.prod(inputs[2]) * math.prod(kernel[:3])
    if name == "CONV_3D":  # (depth, height, width, inputs, outputs)
        return output * math.prod(kernel[:4])
    transposed = operator.builtinOptions is not None and operator.builtinOptions.adjX
    return output * inputs[0][-2 if transposed else -1]
