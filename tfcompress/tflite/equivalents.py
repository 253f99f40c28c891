"""Operators as others that compute the same, and for which LiteRT has the wanted integer kernel."""

from collections.abc import Iterable

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer as fb

# LiteRT negates and squares in floats only.
MULTIPLICATIONS = ("NEG", "SQUARE")


def is_pointwise(model: schema.ModelT, operator: schema.OperatorT) -> bool:
    """Returns whether the operator is a convolution that looks at one place at a time."""
    if fb.operator_name(model, operator) != "CONV_2D":
        return False
    tensors = model.subgraphs[0].tensors
    data, kernel = (fb.shape(tensors[int(i)]) for i in operator.inputs[:2])
    options = operator.builtinOptions
    steps = (options.strideH, options.strideW)
    return kernel[1:3] == (1, 1) and steps == (1, 1) and kernel[3] == data[3]


def as_matrix_products(content: bytes, numbers: Iterable[int]) -> bytes:
    """Returns the file with these pointwise convolutions as FULLY_CONNECTED: the same function.

    Args:
        content: a float file; numbers: of operators for which `is_pointwise` holds.
    """
    model = fb.parse(content)
    main = model.subgraphs[0]
    matrices: dict[int, int] = {}  # a layer that is called twice keeps one kernel
    for number in numbers:
        operator = main.operators[number]
        operator.inputs = [int(i) for i in operator.inputs]
        old = operator.inputs[1]
        if old not in matrices:
            matrices[old] = len(main.tensors)
            main.tensors.append(_matrix(main.tensors[old]))
        operator.inputs[1] = matrices[old]
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = operator.builtinOptions.fusedActivationFunction
        options.keepNumDims = True
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = options
        operator.opcodeIndex = fb.operator_code(model, "FULLY_CONNECTED")
    return fb.pack(model)


def as_multiplications(content: bytes, numbers: Iterable[int]) -> bytes:
    """Returns the file with these NEG and SQUARE operators as MUL: by -1, by themselves.

    Args:
        content: a float file; numbers: of operators called in `MULTIPLICATIONS`.
    """
    model = fb.parse(content)
    main = model.subgraphs[0]
    for number in numbers:
        operator = main.operators[number]
        tensor = int(operator.inputs[0])
        negates = fb.operator_name(model, operator) == "NEG"
        operator.inputs = [tensor, _minus_one(model) if negates else tensor]
        operator.builtinOptionsType = schema.BuiltinOptions.MulOptions
        operator.builtinOptions = schema.MulOptionsT()
        operator.opcodeIndex = fb.operator_code(model, "MUL")
    return fb.pack(model)


def _minus_one(model: schema.ModelT) -> int:
    buffer, tensor = schema.BufferT(), schema.TensorT()
    buffer.data = np.array([-1.0], np.float32).view(np.uint8)
    tensor.shape, tensor.hasRank = np.zeros(0, np.int32), True
    tensor.type, tensor.buffer = schema.TensorType.FLOAT32, len(model.buffers)
    model.buffers.append(buffer)
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _matrix(kernel: schema.TensorT) -> schema.TensorT:
    """Returns a tensor (outputs, inputs) of the kernel (outputs, 1, 1, inputs), with its buffer."""
    matrix = schema.TensorT()
    matrix.shape = np.array([kernel.shape[0], kernel.shape[3]], np.int32)
    matrix.hasRank = True
    matrix.name, matrix.type, matrix.buffer = kernel.name, kernel.type, kernel.buffer
    return matrix
