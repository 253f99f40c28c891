"""What a float `.tflite` file's tensors are on samples: ranges, and the inputs of its kernels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfcompress.errors import InputError
from tfcompress.quantization import RANGES, LayerInputs
from tfcompress.silence import silent_stderr
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.operators import KERNELS, codes
from tfcompress.tflite.patches import groups_of, patches

_LARGEST_MATRIX = 8192  # inputs of a kernel: above, their second moments take over 512 MB
_BYTES_AT_A_TIME = 1 << 30


class Ranges:
    """The range of each tensor: learned in training, or by a method of `RANGES` as observed.

    `factors`: by how much an observed range is widened.
    """

    def __init__(
        self,
        method: Any = None,
        states: Mapping[int, Any] | None = None,
        learned: Mapping[int, tuple[float, float]] | None = None,
        factors: Mapping[int, float] | None = None,
    ):
        self._method = method
        self._states = states or {}
        self.learned = learned or {}
        self.factors = factors or {}

    def __contains__(self, tensor: int) -> bool:
        return tensor in self._states or tensor in self.learned

    def of(self, tensor: int, bits: int) -> tuple[float, float]:
        """Returns (low, high) of a tensor for codes of 8 or 16 bits."""
        if tensor in self.learned:
            return self.learned[tensor]
        low, high = self._method.bounds(self._states[tensor], codes(bits))
        factor = self.factors.get(tensor, 1.0)
        return factor * float(low[0]), factor * float(high[0])

    def scaled(self, tensor: int, factor: float) -> "Ranges":
        """Returns these ranges, that of one tensor widened by the factor."""
        factors = {**self.factors, tensor: self.factors.get(tensor, 1.0) * factor}
        return Ranges(self._method, self._states, self.learned, factors)

    @property
    def observed(self) -> list[int]:
        """The tensors whose ranges were not learned."""
        return sorted(self._states)


def observed(
    content: bytes,
    tensors: Iterable[int],
    samples: Sequence[np.ndarray],
    method: Any = "min_max",
    learned: Mapping[int, tuple[float, float]] | None = None,
) -> Ranges:
    """Returns the ranges of the tensors (by their numbers) over the samples, and those `learned`.

    Args:
        content: the float file.
        samples: for each input an array (n, ...).
        method: a name or method of `RANGES`.
    """
    method = RANGES.create(method)
    states: dict[int, Any] = {}
    for read in _runs(content, samples):
        for tensor in tensors:
            values = read(tensor)
            if not np.isfinite(values).all():
                raise InputError(
                    "Activations must be finite on the samples. Received: NaN or infinity"
                )
            if values.size:
                states[tensor] = method.observe(values.reshape(1, -1), states.get(tensor))
    return Ranges(method, states, learned)


def layer_inputs(
    content: bytes,
    operators: Sequence[int],
    samples: Sequence[np.ndarray],
    names: Mapping[int, str],
) -> Iterator[tuple[int, LayerInputs]]:
    """Yields for each kernel operator (by its number) the moments of its inputs over the samples.

    As many operators are observed in one pass as fit in a gigabyte. `names` are those of their
    layers, for errors.
    """
    model = fb.parse(content)
    main = model.subgraphs[0]
    pending = list(operators)
    while pending:
        now: list[int] = []
        used = 0
        while pending:
            operator = main.operators[pending[0]]
            name = fb.operator_name(model, operator)
            kernel = fb.shape(main.tensors[int(operator.inputs[KERNELS[name].kernel])])
            rows = (
                kernel[1] * kernel[2] if name == "DEPTHWISE_CONV_2D" else int(np.prod(kernel[1:]))
            )
            if rows > _LARGEST_MATRIX:
                raise InputError(
                    f"Rounding of layer '{names[pending[0]]}' must have at most {_LARGEST_MATRIX} "
                    "inputs per output to look at its inputs: give it rounding 'nearest' by a "
                    f"rule. Received: inputs={rows}"
                )
            bytes_ = 8 * rows**2 * (kernel[3] if name == "DEPTHWISE_CONV_2D" else 1)
            if now and used + bytes_ > _BYTES_AT_A_TIME:
                break
            now.append(pending.pop(0))
            used += bytes_
        yield from _moments(content, model, now, samples).items()


def _moments(
    content: bytes, model: Any, numbers: Sequence[int], samples: Sequence[np.ndarray]
) -> dict[int, LayerInputs]:
    main = model.subgraphs[0]
    found: dict[int, LayerInputs] = {}
    for read in _runs(content, samples):
        for number in numbers:
            operator = main.operators[number]
            name = fb.operator_name(model, operator)
            places = KERNELS[name]
            values = read(int(operator.inputs[places.data]))
            kernel = fb.shape(main.tensors[int(operator.inputs[places.kernel])])
            groups = groups_of(model, operator, values.shape[-1])
            seen = LayerInputs.of(patches(values, name, operator, kernel, groups))
            found[number] = found[number] + seen if number in found else seen
    return found


def _runs(content: bytes, samples: Sequence[np.ndarray]) -> Iterator[Any]:
    """Runs the file on each sample; yields a function that reads a tensor by its number."""
    with silent_stderr():
        engine = Interpreter(
            model_content=content,
            experimental_preserve_all_tensors=True,
            # The delegate would be split into one part per operator.
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        engine.allocate_tensors()
    details = engine.get_input_details()
    for row in zip(*samples, strict=True):
        for value, detail in zip(row, details, strict=True):
            engine.set_tensor(detail["index"], value[np.newaxis].astype(detail["dtype"]))
        engine.invoke()
        yield engine.get_tensor
