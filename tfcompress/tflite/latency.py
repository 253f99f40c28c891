"""How long a `.tflite` file takes, so that the answer holds on a noisy machine."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from tfcompress.errors import InputError, require
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import interpreter
from tfcompress.tflite.delegation import delegated
from tfcompress.tflite.prefixes import cuts, prefix

WARM_UPS = 5
ROUNDS = 25
BLOCK_MS = 8.0
# Prefixes of large models: each is an interpreter with a copy of the weights up to there.
_MOST_PREFIXES = 64
_MOST_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator's share of the time: an estimate, from prefixes of the model."""

    name: str
    median_ms: float
    delegated: bool


@dataclasses.dataclass(frozen=True)
class Latency:
    """Time of one run of one file; percentiles are over all timed runs.

    ratio_to_first: the median over rounds of (time / time of the first file in that round);
        ratio_p10, ratio_p90 are its spread over the rounds.
    runs: as asked for; blocks of 8 ms mean that small models are run more often.
    delegated_operators: the operators that XNNPACK took, in order.
    operators: all operators of the main graph, in order, with estimated times; the first carries
        what a run costs before any operator.
    arena_bytes: memory that the interpreter holds for everything but constants when all
        operators run on LiteRT's own kernels: inputs, outputs, activations, scratch. (XNNPACK
        plans its own memory and does not tell.)
    """

    path: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    ratio_to_first: float
    ratio_p10: float
    ratio_p90: float
    threads: int
    runs: int
    xnnpack: bool
    delegated_operators: list[str]
    operators: list[Operator]
    arena_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON takes them."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        taken = sum(operator.delegated for operator in self.operators)
        lines = [
            f"{self.path or 'model'}: {self.median_ms:.4g} ms median ({self.p10_ms:.4g} to "
            f"{self.p90_ms:.4g} ms for 80 % of the runs), {self.threads} thread(s), XNNPACK "
            f"{f'took {taken} of {len(self.operators)} operators' if self.xnnpack else 'off'}",
            f"  {self.ratio_to_first:.3f} of the first file's time ({self.ratio_p10:.3f} to "
            f"{self.ratio_p90:.3f} for 80 % of the rounds), arena {self.arena_bytes:,} bytes",
            "  estimated time per operator (differences of prefixes of the model):",
        ]
        lines += [
            f"    {number:>3} {operator.name:<24}{operator.median_ms:>10.4f} ms  "
            f"{'XNNPACK' if operator.delegated else 'LiteRT'}"
            for number, operator in enumerate(self.operators)
        ]
        return "\n".join(lines)


def measure_latency(
    flatbuffer: fb.Flatbuffer | Sequence[fb.Flatbuffer],
    threads: int = 1,
    runs: int = 200,
    xnnpack: bool = True,
) -> Any:
    """Times one file, or several against each other, on the LiteRT interpreter.

    After five warm-ups the files run in 25 rounds, in random order, each in a block of 8 ms or
    more whose first run is thrown away; files are compared within a round, so that a neighbour or
    a change of the clock's frequency hits all of them. Prefixes of each file take part in the
    rounds and give the estimate per operator.

    Args:
        flatbuffer: content or path of a file; or a list of them, the first being the reference.
        threads: threads of the interpreter, at least 1.
        runs: timed runs for each file, at least.
        xnnpack: leave operators to XNNPACK, as LiteRT does by default.

    Returns:
        `Latency`; for a list, a list of them.

        print(tfc.measure_latency(flatbuffer, threads=1))
    """
    require(runs >= 1, "runs of measure_latency", "must be at least 1", runs=runs)
    if isinstance(flatbuffer, bytes | bytearray | str | os.PathLike):
        return _measure([flatbuffer], threads, runs, xnnpack)[0]
    if not flatbuffer:
        raise InputError("measure_latency needs at least one file. Received: none")
    return _measure(list(flatbuffer), threads, runs, xnnpack)


def measure_ratios(files: Sequence[fb.Flatbuffer], threads: int = 1) -> list[float]:
    """Times whole files against each other, in the rounds of `measure_latency`, and twice as many.

    Returns for each file the median over the rounds of its time / the time of the first.
    """
    runners = [_runner(file, threads, xnnpack=True, least=1) for file in files]
    _time(runners, 2 * ROUNDS)
    first = np.array(runners[0].rounds)
    return [float(np.median(np.array(runner.rounds) / first)) for runner in runners]


def arena_bytes(flatbuffer: fb.Flatbuffer) -> int:
    """Returns the bytes of memory that one run occupies besides the constants.

    Measured: the interpreter's tensors (scratch tensors of its kernels too) are asked for their
    addresses, and the bytes that at least one of them covers are counted. All operators run on
    LiteRT's own kernels, whose tensors share one planned arena.
    """
    model = fb.parse(flatbuffer)
    engine = interpreter.start(flatbuffer, xnnpack=False)
    for detail, value in zip(engine.get_input_details(), interpreter.noise(engine, 1), strict=True):
        codes = interpreter.quantize(value, detail)
        engine.set_tensor(detail["index"], codes)
    engine.invoke()
    tensors = model.subgraphs[0].tensors
    spans = []
    for detail in engine.get_tensor_details():
        index = detail["index"]
        if index < len(tensors) and fb.data(model, tensors[index]) is not None:
            continue
        try:
            view = engine.tensor(index)()
        except ValueError:  # a tensor without memory of its own
            continue
        if isinstance(view, np.ndarray) and view.nbytes and view.dtype.kind != "S":
            start = view.__array_interface__["data"][0]
            spans.append((start, start + view.nbytes))
        del view
    return _covered(spans)


def _covered(spans: list[tuple[int, int]]) -> int:
    total, reached = 0, 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


@dataclasses.dataclass
class _Runner:
    """Something that is timed: an interpreter with its input set."""

    invoke: Callable[[], None]
    per_block: int = 1
    times: list[float] = dataclasses.field(default_factory=list)  # ms, all runs
    rounds: list[float] = dataclasses.field(default_factory=list)  # ms, median of each block

    def block(self) -> None:
        self.invoke()  # thrown away: the caches are another model's
        clock, times = time.perf_counter_ns, []
        for _ in range(self.per_block):
            start = clock()
            self.invoke()
            times.append((clock() - start) / 1e6)
        self.times += times
        self.rounds.append(float(np.median(times)))


def _runner(content: fb.Flatbuffer, threads: int, xnnpack: bool, least: int) -> _Runner:
    engine = interpreter.start(content, threads, xnnpack)
    for detail, value in zip(engine.get_input_details(), interpreter.noise(engine, 1), strict=True):
        engine.set_tensor(detail["index"], interpreter.quantize(value, detail))
    runner = _Runner(engine.invoke)
    try:
        runner.invoke()
    except RuntimeError as error:
        line = " ".join(str(error).split())
        raise InputError(f"Flatbuffer does not run on random inputs: {line}") from None
    start = time.perf_counter_ns()
    for _ in range(WARM_UPS):
        runner.invoke()
    each = max((time.perf_counter_ns() - start) / 1e6 / WARM_UPS, 1e-4)
    runner.per_block = max(least, math.ceil(BLOCK_MS / each))
    return runner


def _time(runners: list[_Runner], rounds: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(rounds):
        for number in random.permutation(len(runners)):
            runners[number].block()


def _measure(files: list[fb.Flatbuffer], threads: int, runs: int, xnnpack: bool) -> list[Latency]:
    rounds = min(ROUNDS, runs)
    models = [fb.parse(file) for file in files]
    lengths = [cuts(model, _prefixes_allowed(model)) for model in models]
    whole = [_runner(file, threads, xnnpack, math.ceil(runs / rounds)) for file in files]
    parts = [
        [_runner(prefix(model, n), threads, xnnpack, 1) for n in cut[:-1]]
        for model, cut in zip(models, lengths, strict=True)
    ]
    _time(whole + [runner for part in parts for runner in part], rounds)
    results = []
    for file, model, cut, runner, part in zip(files, models, lengths, whole, parts, strict=True):
        taken = delegated(file) if xnnpack else [False] * len(model.subgraphs[0].operators)
        names = [fb.operator_name(model, operator) for operator in model.subgraphs[0].operators]
        times = _per_operator(runner, part, cut)
        ratios = np.array(runner.rounds) / np.array(whole[0].rounds)
        results.append(
            Latency(
                path="" if isinstance(file, bytes | bytearray) else os.fspath(file),
                median_ms=float(np.median(runner.times)),
                p10_ms=float(np.percentile(runner.times, 10)),
                p90_ms=float(np.percentile(runner.times, 90)),
                ratio_to_first=float(np.median(ratios)),
                ratio_p10=float(np.percentile(ratios, 10)),
                ratio_p90=float(np.percentile(ratios, 90)),
                threads=threads,
                runs=runs,
                xnnpack=xnnpack,
                delegated_operators=[n for n, t in zip(names, taken, strict=True) if t],
                operators=[
                    Operator(name, ms, by_xnnpack)
                    for name, ms, by_xnnpack in zip(names, times, taken, strict=True)
                ],
                arena_bytes=arena_bytes(file),
            )
        )
    return results


def _prefixes_allowed(model: Any) -> int:
    size = sum(0 if b.data is None else len(b.data) for b in model.buffers)
    return max(1, min(_MOST_PREFIXES, _MOST_BYTES // max(size, 1)))


def _per_operator(whole: _Runner, parts: list[_Runner], lengths: list[int]) -> list[float]:
    """Returns estimated milliseconds of each operator; they sum to the median of the whole."""
    median = float(np.median(whole.times))
    shares = [np.median(np.array(p.rounds) / np.array(whole.rounds)) for p in parts] + [1.0]
    # More operators never take less time: what is left of the noise is averaged away.
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit_transform(np.arange(len(shares)), shares)
    reached = fitted / max(float(fitted[-1]), 1e-9) * median
    times: list[float] = []
    for length, ms in zip(lengths, np.diff(reached, prepend=0.0), strict=True):
        # Operators between two cuts (they only hand out constants, or the model is too large to
        # cut everywhere) share the difference.
        between = length - len(times)
        times += [float(ms) / between] * between
    return times
