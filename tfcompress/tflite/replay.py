"""The inner tensors of a `.tflite` file, one after another: also of one that is being written."""

import dataclasses
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
        graph, detail = model.subgraphs[0], _detail(model.subgraphs[0].tensors[tensor])
        if not self._done and not self._kept:
            self._kept = self._inputs(model)
        if tensor in self._kept:
            yield from (interpreter.dequantize(values, detail) for values in self._kept[tensor])
            return
        given = set(map(int, graph.inputs)) | _made(operators[: self._done])
        part = _segment(operators[self._done :], given, tensor, later)
        if not self._kept.keys() >= set(part.inputs):
            self._done, self._kept = 0, self._inputs(model)
            part = _segment(operators, set(self._kept), tensor, later)
        content = prefixes.part(model, part.operators, part.inputs, part.outputs)
        kept: dict[int, list[np.ndarray]] = {n: [] for n in part.outputs if n in later}
        left = _MOST_BYTES
        for values in _runs(content, self._kept, part.inputs):
            yield interpreter.dequantize(values[0], detail)
            for number, value in zip(part.outputs, values, strict=True):
                if number in kept and left >= 0:
                    kept[number].append(value)
                    left -= value.nbytes
        if left >= 0:
            older = {number: values for number, values in self._kept.items() if number in later}
            self._done, self._kept = len(operators), older | kept

    def _inputs(self, model: schema.ModelT) -> dict[int, list[np.ndarray]]:
        """Returns by tensor what the file's inputs are on the samples."""
        graph, found = model.subgraphs[0], {}
        for number, array in zip(map(int, graph.inputs), self._samples, strict=True):
            codes = interpreter.quantize(array, _detail(graph.tensors[number]))
            found[number] = [value[np.newaxis] for value in codes]
        return found


@dataclasses.dataclass(frozen=True)
class _Segment:
    """The operators to run, what they take, and what they give: first of all what was asked for."""

    operators: list[schema.OperatorT]
    inputs: list[int]
    outputs: list[int]


def _segment(
    new: Sequence[schema.OperatorT], given: Set[int], tensor: int, later: Set[int]
) -> _Segment:
    """Returns which of the `new` operators make the tensor, and what is read `later`."""
    made = _made(new)
    outputs = [tensor, *sorted((later & made) - {tensor})]
    needed = prefixes.needed(list(new), outputs)
    # What none of the new operators makes has to be taken as it is.
    read = {int(i) for operator in needed for i in operator.inputs} | {tensor} - made
    return _Segment(needed, sorted(read & given), outputs)


def _made(operators: Sequence[schema.OperatorT]) -> set[int]:
    return {int(i) for operator in operators for i in operator.outputs}


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
