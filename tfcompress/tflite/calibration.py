"""Which ranges a float `.tflite` file's tensors have on samples."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfcompress.errors import InputError
from tfcompress.quantization import RANGES
from tfcompress.silence import silent_stderr
from tfcompress.tflite.operators import codes


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
    owner: Callable[[int], str] = "tensor {}".format,
) -> Ranges:
    """Returns the ranges of the tensors (by their numbers) over the samples, and those `learned`.

    Args:
        content: the float file.
        samples: for each input an array (n, ...).
        method: a name or method of `RANGES`.
        owner: what an error calls a tensor.
    """
    method = RANGES.create(method)
    states: dict[int, Any] = {}
    for read in _runs(content, samples):
        for tensor in tensors:
            values = read(tensor)
            if not np.isfinite(values).all():
                raise InputError(
                    f"Activations of {owner(tensor)} must be finite on the samples. Received: NaN "
                    "or infinity"
                )
            if values.size:
                states[tensor] = method.observe(values.reshape(1, -1), states.get(tensor))
    return Ranges(method, states, learned)


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
