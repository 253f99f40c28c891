"""Which operators XNNPACK took."""

from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import interpreter


def delegated(flatbuffer: fb.Flatbuffer) -> list[bool]:
    """Returns for each operator of the main graph, in order, whether XNNPACK runs it.

    The interpreter lists all operators and, after them, one DELEGATE for each part that it handed
    over, with the tensors that enter and leave that part; the operators between them are the
    part's. (From Python there is neither a profiler nor a log that would say so.)
    """
    model = fb.parse(flatbuffer)
    operators = model.subgraphs[0].operators or []
    details = interpreter.start(flatbuffer)._get_ops_details()
    producers = {
        int(tensor): number
        for number, operator in enumerate(operators)
        for tensor in operator.outputs
    }
    taken: set[int] = set()
    for part in details[len(operators) :]:
        if part["op_name"] != "DELEGATE":
            continue
        entering = {int(tensor) for tensor in part["inputs"]}
        pending = [int(tensor) for tensor in part["outputs"]]
        while pending:
            tensor = pending.pop()
            number = producers.get(tensor)
            if tensor in entering or number is None or number in taken:
                continue
            taken.add(number)
            pending += [int(i) for i in operators[number].inputs if i >= 0]
    return [number in taken for number in range(len(operators))]
