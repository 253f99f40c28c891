"""Latency as a budget: a table that estimates a pruned model's time, and a search that measures it.

Time does not follow the multiply-accumulates: narrow layers use the hardware worse, and some layers
are bound by memory. So the table is measured, in the interpreter, on models of this very kind; and
because it is still an estimate, a budget counts as met when the model itself was measured.

Fewer channels need not be faster at all. On a Xeon with AMX, whose int8 instructions take 64 inputs
by 16 outputs at once, ResNet-8 in int8 (16 to 64 channels) takes 97 % of its time with a quarter of
its channels; in float32 a model with 0.29 of its operations takes 0.52 of its time.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import InputError, require
from tfcompress.structured import costs
from tfcompress.structured.groups import ChannelGroups
from tfcompress.structured.removal import keep_channels
from tfcompress.structured.selection import Selection
from tfcompress.tflite import convert, measure_latency
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.latency import measure_ratios
from tfcompress.tflite.macs import macs

Ratios = Callable[[Sequence[bytes]], Sequence[float]]  # files -> their times / the first one's
Times = Callable[[Sequence[bytes]], Sequence[Sequence[float]]]  # files -> ms of each operator

_Kind = tuple[tuple[int, ...], int]  # multiply-accumulates at each width, weights in the widest

WIDTHS = (0.25, 0.5, 0.75, 1.0)
_TABLE_ROUNDS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class LatencyTable:
    """Estimates the time of `groups.model` with some of its channels gone, without building it.

    A kernel's time is interpolated over its multiply-accumulates, between the widths at which it
    was measured; so is the time of everything else, over those of the whole model.

    curves: for each use of a kernel its (multiply-accumulates, ms), ascending, or None where no
        operator of the file could be told to be its. rest: the same of everything else.
    """

    groups: ChannelGroups
    curves: tuple[tuple[np.ndarray, np.ndarray] | None, ...]
    rest: tuple[np.ndarray, np.ndarray]

    def estimate(self, kept: Mapping[str, Any] | np.ndarray) -> float:
        """Returns milliseconds for one run.

        `kept` as `keep_channels` takes it, or which labels stay, as `ChannelGroups.stays` returns.
        """
        stays = kept if isinstance(kept, np.ndarray) else self.groups.stays(kept)
        work = costs.kernel_macs(self.groups, stays)
        return float(self.ms(np.array(work), np.array(costs.macs(self.groups, stays))))

    def ms(self, work: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Returns milliseconds (...) for the kernels' multiply-accumulates (..., kernels) and
        those of the whole model (...)."""
        found = np.interp(total, *self.rest)
        for number, curve in enumerate(self.curves):
            if curve is not None:
                found = found + np.interp(work[..., number], *curve)
        return found

    def saved_per_channel(self) -> dict[str, float]:
        """Returns, by group, the milliseconds that a channel is worth: the mean over a quarter.

        A ranking by score / milliseconds removes first what costs most time for its score.
        """
        whole = self.estimate({})
        saved = {}
        for group in self.groups:
            gone = max(1, group.size // 4)
            left = {group.name: np.arange(max(1, group.size - gone))}
            saved[group.name] = max(0.0, whole - self.estimate(left)) / gone
        return saved


def latency_table(
    groups: ChannelGroups,
    scheme: str = "float32",
    samples: Any = None,
    threads: int = 1,
    widths: Sequence[float] = WIDTHS,
    times: Times | None = None,
) -> LatencyTable:
    """Measures a model at several widths and returns what estimates its time at any.

    The model stays as it is; for each width a copy with that share of every group's channels is
    converted and timed operator by operator, all of them in the same rounds. For four widths of
    ResNet-8 this takes about half a minute.

    Args:
        groups: from `channel_groups(model)`.
        scheme, samples: how the files are made, see `tfcompress.convert`.
        threads: threads of the interpreter.
        widths: shares in (0, 1]; 1 is always among them.
        times: what times the operators of files, in ms; by default `measure_latency`.

    Raises:
        InputError: widths out of range, a model that cannot be converted.
    """
    inside = len(widths) > 0 and all(0 < width <= 1 for width in widths)
    require(inside, "widths of latency_table", "must be shares in (0, 1]", widths=list(widths))
    kept = [_uniform(groups, width) for width in sorted({*widths, 1.0})]
    files = [convert(keep_channels(groups, chosen), scheme, samples) for chosen in kept]
    measured = (times or _operator_times(threads))(files)
    stays = [groups.stays(chosen) for chosen in kept]
    work = list(zip(*(costs.kernel_macs(groups, s) for s in stays), strict=True))
    positions = [number for _, number in groups.trace.kernels]
    # By its multiply-accumulates at each width and by its weights a kernel is told from others.
    kinds = [(macs, macs[-1] // n) for macs, n in zip(work, positions, strict=True)]
    times_of = _kernel_times(files, measured, collections.Counter(kinds))
    rest = np.array([sum(ms) for ms in measured])
    for kind in kinds:
        rest = rest - times_of.get(kind, 0.0)
    return LatencyTable(
        groups,
        tuple(_curve(kind[0], times_of[kind]) if kind in times_of else None for kind in kinds),
        _curve([costs.macs(groups, s) for s in stays], np.maximum(rest, 0.0)),
    )


def _kernel_times(
    files: Sequence[bytes],
    measured: Sequence[Sequence[float]],
    kernels: Mapping[_Kind, int],
) -> dict[_Kind, np.ndarray]:
    """Returns by kind of kernel the ms at each width, for one use of a kernel.

    Operators and kernels of the same work at every width and as many weights in the widest model
    are taken for one kind, whose operators take one time, their mean.
    """
    operators = [_operators(file) for file in files]
    if len({tuple(name for name, *_ in found) for found in operators}) > 1:
        return {}  # the converter wrote the models differently: only their sums compare
    by_kind: dict[_Kind, list[Sequence[float]]] = collections.defaultdict(list)
    for parts, ms in zip(zip(*operators, strict=True), zip(*measured, strict=True), strict=True):
        work = tuple(macs_of_operator for _, macs_of_operator, _ in parts)
        if any(work):
            by_kind[work, parts[-1][2]].append(ms)
    return {
        kind: np.mean(ms, axis=0) for kind, ms in by_kind.items() if kernels.get(kind) == len(ms)
    }


def meet_latency(
    build: Callable[[float], keras.Model],
    original: keras.Model,
    target_ratio: float,
    scheme: str = "float32",
    samples: Any = None,
    threads: int = 1,
    tolerance: float = 0.1,
    tries: int = 8,
    ratios: Ratios | None = None,
) -> tuple[keras.Model, float]:
    """Returns a model that takes `target_ratio` of the original's time, and the ratio measured.

    Models are built, converted and timed against the original, both in the same rounds, until one
    lies within half of `tolerance`: then it is within all of it when it is measured again. The
    first amount tried is the target; the next come by the rule of false position, held inside of
    the amounts known to be too small and too large. Both models stay as they are.

    Args:
        build: makes a model from an amount in (0, 1): a share of operations, of estimated time or
            of channels that stay; more must not be faster. An amount too small to build must give
            the smallest model.
        original: what the time is compared with.
        target_ratio: share in (0, 1) of the original's time.
        scheme, samples: how the files are made, see `tfcompress.convert`.
        threads: threads of the interpreter.
        tolerance: relative deviation from the target, in (0, 1).
        tries: models that are built, at most.
        ratios: what measures files, as `measure_ratios`, the default.

    Raises:
        InputError: arguments out of range, or no model tried lies within `tolerance`; the message
            names the nearest.
    """
    _check_search(target_ratio, tolerance, tries)
    measure = ratios or (lambda files: measure_ratios(files, threads))
    reference = convert(original, scheme, samples)
    low, high = (0.0, 0.0), (1.0, 1.0)  # amount and ratio, too small and too large
    best: tuple[float, keras.Model | None, float] = (math.inf, None, math.nan)
    known: dict[bytes, float] = {}  # an amount may lie on the same step between two channels
    amount = target_ratio
    for _ in range(tries):
        model = build(amount)
        file = convert(model, scheme, samples)
        if file not in known:
            known[file] = float(measure([reference, file])[1])
        ratio = known[file]
        best = min(best, (abs(ratio / target_ratio - 1), model, ratio), key=lambda found: found[0])
        if best[0] <= tolerance / 2:
            break
        if ratio > target_ratio:
            high = (amount, ratio)
        else:
            low = (amount, ratio)
        amount = _between(low, high, target_ratio)
    deviation, model, ratio = best
    if model is None or deviation > tolerance:
        raise InputError(
            f"A latency of {target_ratio:g} of the original's cannot be met within "
            f"{tolerance:.0%}: the nearest that was measured is {ratio:.3f}"
        )
    return model, ratio


def prune_to_latency(
    groups: ChannelGroups,
    selection: Selection,
    share: float,
    scheme: str = "float32",
    samples: Any = None,
    threads: int = 1,
    optimizer: bool = False,
    times: Times | None = None,
    ratios: Ratios | None = None,
    table: LatencyTable | None = None,
) -> keras.Model:
    """Returns the model without the first channels of a ranking, at `share` of its time, +-10 %.

    The table, measured if there is none, says how many must go; the measured time of the resulting
    model corrects it.

    Raises:
        InputError: the smallest model that the selection's limits allow is not fast enough.
    """
    table = table or latency_table(groups, scheme, samples, threads, times=times)
    whole = table.estimate({})
    measured: list[float] = []

    def build(amount: float) -> keras.Model:
        removed = selection.within(lambda stays: table.estimate(stays) / whole, amount)
        kept = selection.kept(len(selection) if removed is None else removed)
        return keep_channels(groups, kept, optimizer)

    def watched(files: Sequence[bytes]) -> Sequence[float]:
        found = ratios(files) if ratios else measure_ratios(files, threads)
        measured.append(float(found[1]))
        return found

    try:
        return meet_latency(build, groups.model, share, scheme, samples, threads, ratios=watched)[0]
    except InputError:
        if measured and min(measured) > share:
            fastest = math.ceil(min(measured) * 1e4) / 1e4  # rounded up: it can be reached
            raise InputError(
                f"keep_latency must be at least {fastest:.4f}, what the fastest of the models "
                f"took that limits, round_to and pinned layers leave, measured as {scheme} with "
                f"{threads} thread(s). Received: keep_latency={share:g}"
            ) from None
        raise


def _check_search(target_ratio: float, tolerance: float, tries: int) -> None:
    inside = 0 < target_ratio < 1
    require(inside, "target_ratio of meet_latency", "must be in (0, 1)", target_ratio=target_ratio)
    require(
        0 < tolerance < 1, "tolerance of meet_latency", "must be in (0, 1)", tolerance=tolerance
    )
    require(tries >= 1, "tries of meet_latency", "must be at least 1", tries=tries)


def _between(low: tuple[float, float], high: tuple[float, float], target: float) -> float:
    """Returns the amount at which the straight line through both points reaches the target.

    Kept a tenth away from the ends: noise can bend the line, and a curve would stall there.
    """
    rise = high[1] - low[1]
    share = (target - low[1]) / rise if rise > 0 else 0.5
    return low[0] + float(np.clip(share, 0.1, 0.9)) * (high[0] - low[0])


def _uniform(groups: ChannelGroups, width: float) -> dict[str, np.ndarray]:
    return {group.name: np.arange(max(1, round(width * group.size))) for group in groups}


def _operator_times(threads: int) -> Times:
    def measure(files: Sequence[bytes]) -> list[list[float]]:
        found = measure_latency(list(files), threads=threads, runs=_TABLE_ROUNDS)
        return [[operator.median_ms for operator in latency.operators] for latency in found]

    return measure


def _operators(file: bytes) -> list[tuple[str, int, int]]:
    """Returns name, multiply-accumulates and number of weights of each operator."""
    model = fb.parse(file)
    graph = model.subgraphs[0]
    return [
        (fb.operator_name(model, o), macs(model, graph, o), _weights(graph, o))
        for o in graph.operators
    ]


def _weights(graph: Any, operator: Any) -> int:
    inputs = operator.inputs
    return math.prod(fb.shape(graph.tensors[inputs[1]])) if len(inputs) > 1 else 0


def _curve(work: Sequence[int], ms: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ascending work and its time, which noise must not let fall."""
    return np.asarray(work, float), np.maximum.accumulate(np.asarray(ms, float))
