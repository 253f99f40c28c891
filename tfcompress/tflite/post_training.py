"""A Keras model -> a file whose integers are found here: ranges, rounding, a scheme per layer."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence

import keras
import numpy as np

from tfcompress.errors import InputError, require
from tfcompress.quantization import GRANULARITIES, RANGES, ROUNDINGS
from tfcompress.tflite import calibration, quantizer, range_search
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.calibration import Ranges
from tfcompress.tflite.kernel_inputs import KernelInputs
from tfcompress.tflite.kernels import Method, Stored, store, stored_as_learned
from tfcompress.tflite.markers import Marked, Unit, is_learned
from tfcompress.tflite.plan import Plan, Shortfall, holds_blocks
from tfcompress.tflite.quantizer import DYNAMIC, Kernel
from tfcompress.tflite.request import Request

FEWEST_SAMPLES = 8  # for methods that look at a layer's inputs
# The words that choose a kernel's integers: field of `Method` and registry of each.
_WORDS = {
    "rounding": ("rounding", ROUNDINGS),
    "weight_ranges": ("ranges", RANGES),
    "granularity": ("granularity", GRANULARITIES),
}


def quantized(
    model: keras.Model,
    marked: Marked,
    units: Sequence[Unit],
    request: Request,
    samples: Sequence[np.ndarray] | None,
) -> tuple[bytes, list[Shortfall]]:
    """Returns the file that the request asks for, and what it could not hold.

    Args:
        model: the user's, for messages.
        marked: its float file; units: what the rules may select, as `markers.units` returns them.
        samples: for each input an array (n, ...); None where nothing has to be calibrated.
    """
    plan = Plan(model, marked, units, request)
    _mention_words_without_effect(plan)
    _check_samples(plan, samples)
    _mention_correction(model, plan)
    ranges = _ranges(plan, samples)
    if request.search_ranges and samples is not None and not marked.ranges:
        write = functools.partial(quantizer.quantize, plan.content, plan.modes, store=plan.nearest)
        ranges = range_search.search(write, ranges, plan.content, samples)
    stores = _Stores(plan, samples)
    return quantizer.quantize(plan.content, plan.modes, ranges, stores), plan.shortfalls


def _mention_words_without_effect(plan: Plan) -> None:
    """Says which words choose no integers, since the training has."""
    learned = {n: found for n in plan.kernels() if (found := plan.learned_kernel(n)) is not None}
    words = [
        name
        for name in _WORDS
        if any(_own(plan.choices[number].method, name) for number in learned)
    ]
    if plan.marked.ranges:
        words += [name for name in ("ranges", "search_ranges") if getattr(plan.request, name)]
    if words:
        warnings.warn(
            f"Model '{plan.name}' was trained by quantize_aware, which has chosen its integers: "
            f"{', '.join(words)} has no effect on them",
            stacklevel=5,
        )
    narrow = {plan.layer(n) for n, found in learned.items() if plan.modes[n].weight_bits < found[2]}
    if narrow:
        warnings.warn(
            f"Model '{plan.name}' was trained with more bits than its file's kernels have, which "
            f"are rounded again: {', '.join(sorted(narrow))}. quantize_aware(bits=4) trains 4",
            stacklevel=5,
        )


def _own(method: Method, name: str) -> bool:
    """Returns whether a word of the method is not what it is by default."""
    field, registry = _WORDS[name]
    return registry.create(getattr(method, field)) != registry.create(getattr(Method(), field))


def _check_samples(plan: Plan, samples: Sequence[np.ndarray] | None) -> None:
    looking = plan.looking()
    learned = bool(plan.marked.ranges)
    if samples is None and any(mode.bits for mode in plan.modes) and not learned:
        raise InputError(
            f"Scheme {plan.request.scheme} needs samples (a command: --data) to take the "
            "activations' ranges from, unless quantize_aware has trained these too. "
            "Received: none"
        )
    if not looking:
        return
    count = 0 if samples is None else len(samples[0])
    rule = f"needs at least {FEWEST_SAMPLES} samples: it looks at the layers' inputs"
    require(count >= FEWEST_SAMPLES, f"Rounding {plan.rounding(looking[0])}", rule, samples=count)


def _mention_correction(model: keras.Model, plan: Plan) -> None:
    """Says that biases are corrected for another rounding than the one that keeps their means."""
    looking, corrected = plan.looking(), getattr(model, "bias_correction", None)
    if looking and corrected is not None and corrected.rounding:
        warnings.warn(
            f"Biases of model '{model.name}' make up for the mean error of rounding "
            f"{corrected.rounding}, which {plan.rounding(looking[0])} does not make: give convert "
            "the model as it was before correct_bias",
            stacklevel=5,
        )


def _ranges(plan: Plan, samples: Sequence[np.ndarray] | None) -> Ranges:
    """Returns the ranges of all tensors that integer operators read or make."""
    main = plan.file.subgraphs[0]
    wanted = {
        int(tensor)
        for op, mode in zip(plan.operators, plan.modes, strict=True)
        for tensor in (*op.inputs, *op.outputs)
        if mode.bits
        and tensor >= 0
        and fb.type_name(main.tensors[tensor]) == "FLOAT32"
        and fb.data(plan.file, main.tensors[tensor]) is None
    }
    learned = {tensor: (low, high) for tensor, (low, high, _) in plan.learned.items()}
    for number, unit in enumerate(plan.marked.units):
        if plan.operator(number) == "PRELU" and unit is not None and is_learned(unit.operation):
            # Its weights are an input like others: the range whose steps are those learned.
            scale = float(np.max(unit.operation.quantization()[1]))
            learned[int(plan.operators[number].inputs[1])] = (-128 * scale, 127 * scale)
    if not wanted or samples is None:
        return Ranges(learned=learned)
    unknown = sorted(wanted - set(learned))
    method = plan.request.ranges or "min_max"
    ranges = calibration.observed(plan.content, unknown, samples, method, learned, plan.maker)
    bounds = {tensor: ranges.of(tensor, 8) for tensor in ranges.observed}
    dead = dict.fromkeys(plan.maker(t) for t, (low, high) in bounds.items() if not low < high)
    if dead:
        warnings.warn(
            f"Activations of model '{plan.name}' are 0 for all samples: {', '.join(dead)}. Their "
            "ranges are guessed: give other samples, or remove what is dead",
            stacklevel=5,
        )
    return ranges


class _Stores:
    """Gives each kernel its integers, in the operators' order."""

    def __init__(self, plan: Plan, samples: Sequence[np.ndarray] | None):
        self._plan = plan
        self._inputs = KernelInputs(plan.file, samples or (), plan.layer)

    def __call__(self, kernel: Kernel) -> Stored:
        plan, number = self._plan, kernel.number
        method, bits = plan.choices[number].method, plan.modes[number].weight_bits
        name, weights = plan.operator(number), kernel.weights
        if method.block and not holds_blocks(weights.shape, name, bits, method.block):
            method = dataclasses.replace(method, granularity="per_channel")
        learned = plan.learned_kernel(number)
        if learned is not None and learned[2] <= bits:
            stored = stored_as_learned(weights, name, learned[1], bits)
        else:
            inputs = self._inputs.of(kernel) if method.needs_inputs else None
            stored = store(weights, name, bits, method, inputs, kernel.bias, kernel.input_scale)
        if name == "DEPTHWISE_CONV_2D" and plan.modes[number].activations == DYNAMIC:
            # Its kernel reads a scale for each channel, also where there is but one.
            scale = np.broadcast_to(stored.scale, weights.shape[-1:]).copy()
            stored = dataclasses.replace(stored, scale=scale)
        return stored
