"""How far the inner tensors of a `.tflite` file are from those of a reference, step by step."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from tfcompress.errors import InputError
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import interpreter
from tfcompress.tflite.prefixes import single
from tfcompress.tflite.steps import Step, constant_makers, match, steps

# Real numbers by tensor of the reference, for one sample.
Values = Mapping[int, np.ndarray]


@dataclasses.dataclass
class Difference:
    """Sums over all values of a tensor; `true` is the reference's, `found` the file's.

    signal, error: of true^2 and of (true - found)^2. count: of values. clipped: values of `true`
    more than half a step outside of the file's range. equal: values less than half a step apart.
    low, high: the extremes of `true`.
    """

    signal: float = 0.0
    error: float = 0.0
    count: int = 0
    clipped: int = 0
    equal: int = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, true: np.ndarray, found: np.ndarray, detail: dict[str, Any]) -> None:
        true, found = (np.ravel(array).astype(np.float64) for array in (true, found))
        self.signal += float(true @ true)
        self.error += float(np.sum((true - found) ** 2))
        self.count += true.size
        self.low, self.high = min(self.low, true.min()), max(self.high, true.max())
        scale, _ = detail["quantization"]
        low, high = bounds(detail)
        outside = (true < low - scale / 2) | (true > high + scale / 2)
        self.clipped += int(np.count_nonzero(outside))
        nearest = scale / 2 if scale else 1e-5 * np.abs(true).max(initial=0.0)
        self.equal += int(np.count_nonzero(np.abs(true - found) <= nearest))

    @property
    def snr_db(self) -> float:
        """10 log10(signal / error); infinite where there is no error."""
        if self.error == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.error) if self.signal else -math.inf


def bounds(detail: dict[str, Any]) -> tuple[float, float]:
    """Returns the real numbers of the lowest and the highest code; of a float, infinities."""
    scale, zero_point = detail["quantization"]
    if not scale or np.issubdtype(detail["dtype"], np.floating):
        return -math.inf, math.inf
    limits = np.iinfo(detail["dtype"])
    return (limits.min - zero_point) * scale, (limits.max - zero_point) * scale


@dataclasses.dataclass(frozen=True)
class StepDifference:
    """A step of the file and the step of the reference that it stands for.

    detail: the interpreter's of its output. whole: its output in a run of the whole file. own: its
    output where it reads the reference's values, rounded to the types that it takes, against what
    the reference makes of the same; None where a tensor that it reads has no counterpart.
    """

    step: Step
    reference: Step
    detail: dict[str, Any]
    whole: Difference
    own: Difference | None


class Pair:
    """A float file and another of the same model, with their steps matched.

    steps, inputs: of the float file, its steps and its input tensors. found_steps: of the other;
    unmatched: those of them that stand for none of the float file's.
    """

    def __init__(self, reference: bytes, flatbuffer: fb.Flatbuffer):
        self._reference, self._found = fb.parse(reference), fb.parse(flatbuffer)
        self.steps = steps(self._reference)
        self.found_steps = steps(self._found)
        # XNNPACK keeps some tensors to itself; in float it makes no difference but rounding.
        self._engine = interpreter.start(reference, xnnpack=False, preserve=True)
        self._other = interpreter.start(flatbuffer, preserve=True)
        self._details = {d["index"]: d for d in self._other.get_tensor_details()}
        ends = [graph.inputs for graph in (self._found.subgraphs[0], self._reference.subgraphs[0])]
        self.inputs = self._matched_inputs()
        self._pairs, self._tensors = match(
            self.steps, self.found_steps, dict(zip(*[map(int, end) for end in ends], strict=True))
        )
        self.unmatched = [step for step in self.found_steps if step.number not in self._pairs]

    def _matched_inputs(self) -> list[int]:
        sizes = [
            [tuple(map(int, d["shape"][1:])) for d in engine.get_input_details()]
            for engine in (self._engine, self._other)
        ]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"The flatbuffer must have the model's inputs, of shapes {sizes[0]}. "
                f"Received: {sizes[1]}"
            )
        return [int(i) for i in self._reference.subgraphs[0].inputs]

    def reference_values(self, sample: Sequence[np.ndarray]) -> Values:
        """Returns the reference's tensors for one sample, arrays (1, ...) in the inputs' order."""
        _run(self._engine, sample)
        found = {int(i): self._engine.get_tensor(i) for s in self.steps for i in s.outputs}
        return dict(zip(self.inputs, sample, strict=True)) | found

    def differences(
        self,
        samples: Iterable[Sequence[np.ndarray]],
        truth: Callable[[Sequence[np.ndarray]], Values] | None = None,
    ) -> list[StepDifference]:
        """Returns the differences of all matched steps, summed over the samples, in file order.

        `truth` gives the real numbers that tensors should have, in place of the reference's own; of
        steps for whose outputs it gives none there is no entry, nor of those whose outputs XNNPACK
        keeps to itself.
        """
        runs = [self._run_of(step) for step in self.found_steps if step.number in self._pairs]
        for sample in samples:
            values = (truth or self.reference_values)(sample)
            _run(self._other, sample)
            for run in runs:
                run.see(values, self._other, exact=truth is not None)
        return [run.result for run in runs if run.result.whole.count]

    def _run_of(self, step: Step) -> "_StepRun":
        reference, detail = self._pairs[step.number], self._details[step.outputs[0]]
        known = all(source in self._tensors for source in step.sources)
        own = Difference() if known else None
        result = StepDifference(step, reference, detail, Difference(), own)
        sources = [self._tensors[source] for source in step.sources] if known else []
        return _StepRun(result, self._found, self._reference, sources)


class _StepRun:
    """Runs one step alone, beside its reference."""

    def __init__(self, result: StepDifference, found: Any, reference: Any, sources: list[int]):
        self.result = result
        self._sources = sources
        if result.own is not None:
            self._engine = _alone(found, result.step)
            self._reference = _alone(reference, result.reference)

    def see(self, values: Values, engine: Interpreter, exact: bool) -> None:
        result, outputs = self.result, self.result.reference.outputs
        if any(i not in values for i in outputs):
            return
        mine = _tensors(engine, result.step.outputs)
        if not mine:
            return
        for codes, place in zip(mine, outputs, strict=True):
            found = interpreter.dequantize(codes, result.detail)
            result.whole.add(values[place], found, result.detail)
        if result.own is None or any(i not in values for i in self._sources):
            return
        details = self._engine.get_input_details()
        places = list(dict.fromkeys(result.step.inputs))
        given: dict[int, np.ndarray] = {}
        given_codes = []
        for place, detail in zip(places, details, strict=True):
            source = self._sources[result.step.inputs.index(place)]
            shaped = np.reshape(values[source], detail["shape"])
            given_codes.append(interpreter.quantize(shaped, detail))
            given[source] = interpreter.dequantize(given_codes[-1], detail)
        found_all = _run(self._engine, given_codes, quantized=True)
        true_all = [values[i] for i in outputs] if exact else self._expected(given)
        for true, found in zip(true_all, found_all, strict=True):
            result.own.add(true, found, result.detail)

    def _expected(self, given: Values) -> list[np.ndarray]:
        reference = self.result.reference
        by_place = dict(zip(reference.inputs, reference.sources, strict=True))
        details = self._reference.get_input_details()
        inputs = [
            np.reshape(given[by_place[place]], detail["shape"])
            for place, detail in zip(dict.fromkeys(reference.inputs), details, strict=True)
        ]
        return _run(self._reference, inputs)


def _alone(model: Any, step: Step) -> Interpreter:
    numbers = [*constant_makers(model, step.number), step.number]
    return interpreter.start(single(model, numbers, list(dict.fromkeys(step.inputs))))


def _tensors(engine: Interpreter, places: Sequence[int]) -> list[np.ndarray]:
    """Returns inner tensors after a run; none where XNNPACK has kept one to itself."""
    try:
        return [engine.get_tensor(place) for place in places]
    except ValueError:
        return []


def _run(
    engine: Interpreter, inputs: Sequence[np.ndarray], quantized: bool = False
) -> list[np.ndarray]:
    for array, detail in zip(inputs, engine.get_input_details(), strict=True):
        codes = array if quantized else interpreter.quantize(array, detail)
        engine.set_tensor(detail["index"], codes)
    engine.invoke()
    outputs = engine.get_output_details()
    return [interpreter.dequantize(engine.get_tensor(d["index"]), d) for d in outputs]
