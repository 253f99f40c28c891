"""The first operators of a `.tflite` file as files of their own, to time one operator.

The time of operator k is about that of the first k less that of the first k - 1: from Python the
interpreter has no profiler.
"""

import copy

from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer as fb


def prefix(model: schema.ModelT, length: int) -> bytes:
    """Returns a file of the main graph's first `length` operators.

    Its outputs are the tensors that the rest of the graph, or its caller, reads; constants made
    for the rest (DEQUANTIZE of float16 weights) are left to the rest.
    """
    graph = model.subgraphs[0]
    head, tail = graph.operators[:length], graph.operators[length:]
    running = _running(graph, length)
    made = [int(i) for operator in head for i in operator.outputs if int(i) in running]
    wanted = {int(i) for operator in tail for i in operator.inputs} | set(map(int, graph.outputs))
    outputs = [i for i in made if i in wanted] or made[-1:]
    return part(model, needed(head, outputs), list(map(int, graph.inputs)), outputs)


def single(model: schema.ModelT, numbers: list[int], inputs: list[int]) -> bytes:
    """Returns a file of the main graph's operators `numbers` alone, with the last one's outputs.

    `inputs`: the tensors that the file takes, in order; others that are read are constants.
    """
    operators = [model.subgraphs[0].operators[number] for number in numbers]
    return part(model, operators, inputs, list(map(int, operators[-1].outputs)))


def part(
    model: schema.ModelT, operators: list[schema.OperatorT], inputs: list[int], outputs: list[int]
) -> bytes:
    """Returns a file of some operators of the main graph, which takes and gives these tensors."""
    graph = model.subgraphs[0]
    used = set(inputs) | {int(i) for o in operators for i in (*o.inputs, *o.outputs)}
    scales = (fb.block_scales(graph.tensors[number]) for number in used if number >= 0)
    used |= {number for number in scales if number is not None}
    made = copy.copy(model)
    made.signatureDefs = None  # they name the whole graph's outputs
    made.subgraphs = [copy.copy(graph), *model.subgraphs[1:]]
    made.subgraphs[0].operators = operators
    made.subgraphs[0].inputs, made.subgraphs[0].outputs = inputs, outputs
    # Constants of later operators stay out; tensors keep their numbers.
    made.subgraphs[0].tensors = [
        tensor if number in used else _without_data(tensor)
        for number, tensor in enumerate(graph.tensors)
    ]
    read = {t.buffer for g in made.subgraphs for t in g.tensors}
    made.buffers = [
        buffer if number in read else schema.BufferT()
        for number, buffer in enumerate(model.buffers)
    ]
    return fb.pack(made)


def cuts(model: schema.ModelT, most: int) -> list[int]:
    """Returns at most `most` increasing lengths of prefixes that are worth timing, the last the
    whole graph's.

    Operators that only hand out constants (DEQUANTIZE of float16 weights) end no prefix.
    """
    graph = model.subgraphs[0]
    running = _running(graph, len(graph.operators or []))
    lengths = [
        number
        for number, operator in enumerate(graph.operators or [], start=1)
        if any(int(i) in running for i in operator.outputs)
    ]
    total = len(graph.operators or [])
    if not lengths or lengths[-1] != total:
        lengths.append(total)
    stride = -(-len(lengths) // most)
    return lengths[::-1][::stride][::-1]


def _running(graph: schema.SubGraphT, length: int) -> set[int]:
    """Returns the tensors that depend on the graph's inputs, among its first operators."""
    running = set(map(int, graph.inputs))
    for operator in (graph.operators or [])[:length]:
        if any(int(i) in running for i in operator.inputs):
            running |= {int(i) for i in operator.outputs}
    return running


def needed(operators: list[schema.OperatorT], outputs: list[int]) -> list[schema.OperatorT]:
    """Returns, in order, the operators that `outputs` depend on."""
    wanted, found = set(outputs), []
    for operator in reversed(operators):
        if any(int(i) in wanted for i in operator.outputs):
            wanted |= {int(i) for i in operator.inputs}
            found.append(operator)
    return found[::-1]


def _without_data(tensor: schema.TensorT) -> schema.TensorT:
    empty = copy.copy(tensor)
    empty.buffer = 0
    return empty
