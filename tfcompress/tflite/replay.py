"""The inner tensors of a `.tflite` file, one after another: also of one that is being written."""

from collections.abc import Iterator, Sequence, Set

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import interpreter, prefixes

_MOST_BYTES = 1 << 30  # of tensors that are kept to go on from


class Replay:
    """Reads a file's tensors on all samples, in the order in which its operators make them.

    Each reading goes on from the tensors that the last one left for later operators. Where these
    would take more than a gigabyte, or one is missing after all, operators are run again.
    """

    def __init__(self, samples: Sequence[np.ndarray]):
        """`samples`: for each input an array (n, ...)."""
        self._samples = samples
        self._done = 0  # operators whose results are kept
        self._kept: dict[int, list[np.ndarray]] = {}

    def read(
        self,
        model: schema.ModelT,
        operators: Sequence[schema.OperatorT],
        tensor: int,
        later: Set[int],
    ) -> Iterator[np.ndarray]:
        """Yields a tensor as real numbers, sample by sample; what is left over is read again.

        Args:
            model: its main graph has the tensors and the inputs.
            operators: all that come before: those of the last reading and more.
            tensor: one that they make, or an input.
            later: what the operators read that are still to come.
        """
        if not self._done:
            self._kept = _inputs(model, self._samples)
        detail = _detail(model.subgraphs[0].tensors[tensor])
        found = self._kept.get(tensor) or self._run(model, operators, tensor, later)
        yield from (interpreter.dequantize(values, detail) for values in found)

    def _run(
        self,
        model: schema.ModelT,
        operators: Sequence[schema.OperatorT],
        tensor: int,
        later: Set[int],
    ) -> Iterator[np.ndarray]:
        new = list(operators[self._done :])
        made = {int(i) for operator in new for i in operator.outputs}
        outputs = [tensor, *sorted((later & made) - {tensor})]
        needed = prefixes.needed(new, outputs)
        before = set(_inputs(model, ())) | {int(i) for o in operators for i in o.outputs} - made
        inputs = sorted(before & {int(i) for operator in needed for i in operator.inputs})
        if self._done and (tensor not in made or not self._kept.keys() >= set(inputs)):
            self._done, self._kept = 0, _inputs(model, self._samples)
            yield from self._run(model, operators, tensor, later)
            return
        kept: dict[int, list[np.ndarray]] = {number: [] for number in outputs if number in later}
        left = _MOST_BYTES
        for values in _runs(prefixes.part(model, needed, inputs, outputs), self._kept, inputs):
            yield values[0]
            for number, value in zip(outputs, values, strict=True):
                if number in kept and left >= 0:
                    kept[number].append(value)
                    left -= value.nbytes
        if left >= 0:
            older = {number: values for number, values in self._kept.items() if number in later}
            self._done, self._kept = len(operators), older | kept


def _inputs(model: schema.ModelT, samples: Sequence[np.ndarray]) -> dict[int, list[np.ndarray]]:
    """Returns by tensor what the file's inputs are on the samples."""
    graph = model.subgraphs[0]
    details = {int(number): _detail(graph.tensors[number]) for number in graph.inputs}
    pairs = zip(details.items(), samples, strict=bool(len(samples)))
    codes = {number: interpreter.quantize(array, detail) for (number, detail), array in pairs}
    return {number: [value[np.newaxis] for value in codes.get(number, ())] for number in details}


def _runs(
    content: bytes, given: dict[int, list[np.ndarray]], inputs: Sequence[int]
) -> Iterator[list[np.ndarray]]:
    """Yields the outputs of a file whose inputs are those of the given tensors, as they are."""
    engine = interpreter.start(content)
    places = [detail["index"] for detail in engine.get_input_details()]
    results = [detail["index"] for detail in engine.get_output_details()]
    for sample in zip(*(given[number] for number in inputs), strict=True):
        for place, value in zip(places, sample, strict=True):
            engine.set_tensor(place, value)
        engine.invoke()
        yield [engine.get_tensor(place) for place in results]


def _detail(tensor: schema.TensorT) -> dict:
    """Returns the type and the grid of a tensor, as the interpreter tells them of its ends."""
    scales = fb.scales(tensor)
    grid = (float(scales[0]), int(tensor.quantization.zeroPoint[0])) if len(scales) == 1 else (0, 0)
    return {"dtype": fb.DTYPES[fb.type_name(tensor)], "quantization": grid}
