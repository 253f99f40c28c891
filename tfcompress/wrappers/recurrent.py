"""Recurrent layers unrolled: each step in FULLY_CONNECTED, LOGISTIC, TANH, MUL and ADD.

A tensor has one range over all steps, as the state of a loop would.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from tfcompress.wrappers.operators import Zeros
from tfcompress.wrappers.parts import Parts, masked, resized, unknown_sizes, values

_LAYERS, _OPS = keras.layers, keras.ops
_CELLS = (_LAYERS.SimpleRNNCell, _LAYERS.LSTMCell, _LAYERS.GRUCell)
Activate = Callable[[Parts, Any, Any, str, Any], Any]


def recurrent(parts: Parts, owner: Any, activate: Activate, x: Any, name: str | None = None) -> Any:
    """RNN, SimpleRNN, LSTM and GRU of one cell or several stacked ones."""
    name = name or owner.name
    steps = list(range(x.shape[1]))
    order = steps[::-1] if owner.go_backwards else steps
    states: list[Any] = []
    outputs: list[Any] = []
    for number, cell in enumerate(_cells(owner)):
        prefix = f"{name}_{number}" if len(_cells(owner)) > 1 else name
        unrolled = _Unrolled(parts, owner, cell, prefix, activate)
        inputs = unrolled.projected(x)
        state: list[Any] = []
        outputs = []
        for step in order:
            state = unrolled.step(inputs[:, step], state)
            outputs.append(state[0])
        states += state
        x = _stacked(outputs)
        order = steps
    y = x if owner.return_sequences else outputs[-1]
    return [y, *states] if owner.return_state else y


def bidirectional(parts: Parts, owner: Any, activate: Activate, x: Any) -> Any:
    forward, backward = owner.forward_layer, owner.backward_layer
    y = recurrent(parts, forward, activate, x, f"{owner.name}_{forward.name}")
    z = recurrent(parts, backward, activate, x, f"{owner.name}_{backward.name}")
    if owner.return_sequences:
        z = _stacked([z[:, step] for step in reversed(range(z.shape[1]))])
    if owner.merge_mode is None:
        return [y, z]
    if owner.merge_mode == "concat":
        return _LAYERS.Concatenate(name=owner.name, dtype=owner.dtype_policy)([y, z])
    if owner.merge_mode == "mul":
        return y * z
    return y + z if owner.merge_mode == "sum" else (y + z) * 0.5


def _stacked(tensors: list[Any]) -> Any:
    wide = [resized(x, (1, *x.shape[1:])) for x in tensors]
    return wide[0] if len(wide) == 1 else _LAYERS.Concatenate(axis=1)(wide)


@dataclasses.dataclass
class _Unrolled:
    """One cell whose parts serve all steps."""

    parts: Parts
    owner: Any
    cell: Any
    prefix: str
    activate: Activate

    def projected(self, x: Any) -> Any:
        """Returns what all inputs contribute to the gates, in one product."""
        cell = self.cell
        if cell.dropout:
            x = _LAYERS.Dropout(cell.dropout, (x.shape[0], 1, x.shape[2]))(x)
        bias = values(cell.bias)
        bias = bias[0] if bias is not None and bias.ndim == 2 else bias
        dense = self.parts.dense(
            f"{self.prefix}_kernel", self.owner, values(cell.kernel), bias, like=cell
        )
        return dense(x)

    def step(self, x: Any, state: Any) -> list[Any]:
        cell = self.cell
        if isinstance(cell, _LAYERS.LSTMCell):
            return self._lstm(x, state)
        if isinstance(cell, _LAYERS.GRUCell):
            return self._gru(x, state)
        if state:
            x = self._call("add", _LAYERS.Add, x, self._recurrent(state[0]))
        return [self._activation("outputs", cell.activation, x)]

    def _lstm(self, x: Any, state: Any) -> list[Any]:
        cell = self.cell
        if state:
            x = self._call("add", _LAYERS.Add, x, self._recurrent(state[0]))
        i, f, c, o = (x[:, k * cell.units : (k + 1) * cell.units] for k in range(4))
        i, f, o = (
            self._activation(name, cell.recurrent_activation, gate)
            for name, gate in (("i", i), ("f", f), ("o", o))
        )
        carry = self._call("new", _LAYERS.Multiply, i, self._activation("c", cell.activation, c))
        if state:
            kept = self._call("kept", _LAYERS.Multiply, f, state[1])
            carry = self._call("carry", _LAYERS.Add, kept, carry)
        shown = self._activation("shown", cell.activation, carry)
        return [self._call("outputs", _LAYERS.Multiply, o, shown), carry]

    def _gru(self, x: Any, state: Any) -> list[Any]:
        cell, n = self.cell, self.cell.units
        h = self._zeros(x) if not state else state[0]
        if cell.reset_after:
            bias = values(cell.bias)
            inner = self._recurrent(h, bias=None if bias is None else bias[1])
            gates = self._call("add", _LAYERS.Add, x[:, : 2 * n], inner[:, : 2 * n])
        else:
            kernel = values(cell.recurrent_kernel)
            gates = self._recurrent(h, kernel=kernel[:, : 2 * n])
            gates = self._call("add", _LAYERS.Add, x[:, : 2 * n], gates)
        z = self._activation("z", cell.recurrent_activation, gates[:, :n])
        r = self._activation("r", cell.recurrent_activation, gates[:, n:])
        if cell.reset_after:
            inner = self._call("reset", _LAYERS.Multiply, r, inner[:, 2 * n :])
        else:
            inner = self._call("reset", _LAYERS.Multiply, r, h)
            inner = self._recurrent(inner, "_candidate", kernel[:, 2 * n :])
        inner = self._call("candidate", _LAYERS.Add, x[:, 2 * n :], inner)
        candidate = self._activation("c", cell.activation, inner)
        # z h + (1 - z) c in three operators: c + z (h - c)
        change = self._call("change", _LAYERS.Subtract, h, candidate)
        change = self._call("moved", _LAYERS.Multiply, z, change)
        return [self._call("outputs", _LAYERS.Add, candidate, change)]

    def _recurrent(self, h: Any, suffix: str = "", kernel: Any = None, bias: Any = None) -> Any:
        if self.cell.recurrent_dropout:
            h = _LAYERS.Dropout(self.cell.recurrent_dropout)(h)
        kernel = values(self.cell.recurrent_kernel) if kernel is None else kernel
        name = f"{self.prefix}_recurrent{suffix}"
        return self._one_range(self.parts.dense(name, self.owner, kernel, bias))(h)

    def _zeros(self, x: Any) -> Any:
        name = f"{self.prefix}_start"
        return self.parts.once(name, lambda: Zeros(self.cell.units, name=name))(x)

    def _call(self, name: str, kind: Any, *tensors: Any) -> Any:
        name = f"{self.prefix}_{name}"
        layer = self.parts.once(name, lambda: kind(name=name, dtype=self.owner.dtype_policy))
        return self._one_range(layer)(list(tensors))

    def _activation(self, name: str, function: Any, x: Any) -> Any:
        return self.activate(self.parts, function, x, f"{self.prefix}_{name}", self.owner)

    def _one_range(self, layer: Any) -> Any:
        self.parts.one_range.add(layer.name)
        return layer


def _cells(owner: Any) -> list[Any]:
    cell = owner.cell
    return cell.cells if isinstance(cell, _LAYERS.StackedRNNCells) else [cell]


def reason_of_recurrent(owner: Any, *args: Any, **kwargs: Any) -> str | None:
    others = [cell for cell in _cells(owner) if type(cell) not in _CELLS]
    if others:
        return f"cells of type {type(others[0]).__name__} are not simulated"
    if owner.stateful:
        return "a state that is kept from batch to batch has no place in the file"
    given = [*args[1:], kwargs.get("initial_state"), kwargs.get("mask")]
    if any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(given)):
        return "an initial state or a mask that is given is not simulated"
    if masked(args):
        return "masks that come with the data are not simulated"
    return "the number of steps must be fixed" if unknown_sizes(args) else None


def reason_of_bidirectional(owner: Any, *args: Any, **kwargs: Any) -> str | None:
    for layer in (owner.forward_layer, owner.backward_layer):
        if not isinstance(layer, _LAYERS.RNN):
            return f"layers of type {type(layer).__name__} are not simulated in both directions"
        if layer.return_state:
            return "both directions' states as outputs are not simulated"
        if (reason := reason_of_recurrent(layer, *args, **kwargs)) is not None:
            return reason
    return None
