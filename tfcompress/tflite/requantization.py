"""The ratio of scales by which an integer kernel's sums are multiplied, and XNNPACK's limit."""

from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import InputError
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.operators import KERNELS, Places

_LIMIT = 256.0


def check_ratios(model: schema.ModelT) -> None:
    """Raises InputError for an int8 kernel that is too large for the range of its outputs.

    XNNPACK refuses input scale x weight scale / output scale of 256 and more. LiteRT says so
    without naming the operator, or, in clearing up a large graph, ends the process.
    """
    for graph in model.subgraphs:
        for number, operator in enumerate(graph.operators or []):
            kind = fb.operator_name(model, operator)
            if kind in KERNELS:
                _check(graph, operator, f"Operator {number} {kind}", KERNELS[kind])


def _check(graph: schema.SubGraphT, operator: schema.OperatorT, owner: str, at: Places) -> None:
    tensors = (operator.inputs[at.data], operator.inputs[at.kernel], operator.outputs[0])
    x, kernel, y = (graph.tensors[int(number)] for number in tensors)
    scales = [fb.scales(tensor) for tensor in (x, kernel, y)]
    if fb.type_name(y) != "INT8" or not all(len(scale) for scale in scales):
        return
    entering, weight, leaving = (float(scale.max()) for scale in scales)
    if entering * weight >= _LIMIT * leaving:
        name = (fb.tensor_name(y) or fb.tensor_name(kernel)).split(";")[0]
        raise InputError(
            f"{owner} '{name}' must have a ratio of scales (input x weight / output) below "
            f"{_LIMIT:g} to run on XNNPACK: its weights are too large for the range of its "
            "outputs; were they trained on after the range was found, with too large steps? "
            f"Received: {entering:.3g} x {weight:.3g} / {leaving:.3g} = "
            f"{entering * weight / leaving:,.0f}"
        )
