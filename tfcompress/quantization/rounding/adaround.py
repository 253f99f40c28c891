"""Up or down, as the layer's outputs want it."""

import dataclasses
import numbers
from typing import ClassVar

import numpy as np

from tfcompress.errors import InputError, require
from tfcompress.quantization.grid import Grid
from tfcompress.quantization.layer_inputs import LayerInputs
from tfcompress.quantization.rounding import ROUNDINGS

_STRETCH, _SHIFT = 1.2, -0.1  # the sigmoid reaches from -0.1 to 1.1, and is cut to [0, 1]
_BETA_BEGIN, _BETA_END = 20.0, 2.0
_ON_CODE = 1e-4  # steps that a weight may be off a code to be on it, by float32's rounding
_WARM_UP = 0.2  # the share of the iterations without regulariser


@ROUNDINGS.register("adaround")
@dataclasses.dataclass(frozen=True)
class AdaRound:
    """Rounds each weight up or down so that the layer's outputs change least.

    Minimises ||X W - X W_q||^2 over all choices at once: w_q = s (floor(w / s) + h(V)) with a
    rectified sigmoid h, by Adam on V, while a regulariser 1 - |2 h - 1|^beta drives each h to 0 or
    1 as beta falls. Then, beyond the paper, the weight whose other choice lowers its channel's
    error most is turned over, again and again, until no single one does; so are the choices of
    `nearest`, and each output channel takes the better of both. On the inputs given no channel's
    error is ever larger than that of `nearest`. A weight that is on a code, such as zero or the
    values that `cluster(grid="int8")` leaves, keeps it.

    Weights have shape (in, out), or (groups, in, out) with inputs of as many groups: a convolution
    kernel is reshaped to (positions * channels, out) and its inputs cut into patches. They are
    needed: `LayerInputs`, from a few hundred samples. `convert` gathers those that the layers
    before, quantized already, hand on, so that each layer makes up for what these lost (the paper's
    asymmetric reconstruction); a bias takes the mean of what is left.

    `iterations`: at least 1. `learning_rate` of Adam and `regularisation`, the regulariser's weight
    relative to the mean error of a weight: above 0.

    Source: Nagel et al. 2020, "Up or down? Adaptive rounding for post-training quantization".

        codes = AdaRound().round(kernel, grid, LayerInputs.of(x))
    """

    iterations: int = 300
    learning_rate: float = 0.03
    regularisation: float = 30.0

    needs_inputs: ClassVar[bool] = True
    overshoot: ClassVar[int] = 0

    def __post_init__(self) -> None:
        whole = isinstance(self.iterations, numbers.Integral) and self.iterations >= 1
        rule = "must be a whole number, at least 1"
        require(whole, "iterations of AdaRound", rule, iterations=self.iterations)
        for name in ("learning_rate", "regularisation"):
            value = getattr(self, name)
            valid = np.isfinite(value) and value > 0
            require(valid, f"{name} of AdaRound", "must be finite and above 0", **{name: value})

    def round(
        self, weights: np.ndarray, grid: Grid, inputs: LayerInputs | None = None
    ) -> np.ndarray:
        """Returns the codes, int32 of the weights' shape (..., in, out)."""
        if inputs is None:
            raise InputError("AdaRound needs the layer's inputs. Received: inputs=None")
        _check(weights, inputs)
        steps = grid.steps(weights)
        nearest = grid.clip(np.rint(steps))
        down, up = grid.clip(np.floor(steps)), grid.clip(np.floor(steps) + 1)
        settled = np.abs(steps - np.rint(steps)) < _ON_CODE
        down, up = np.where(settled, nearest, down), np.where(settled, nearest, up)
        choice = Choice.of(weights, grid, down, up, inputs)
        learned = choice.turned_over(self._learn(choice, steps) >= 0.5)
        plain = choice.turned_over(nearest > down)
        better = choice.error(learned) < choice.error(plain)
        return np.where(np.where(better, learned, plain), up, down)

    def _learn(self, choice: "Choice", steps: np.ndarray) -> np.ndarray:
        """Returns h, float32 in [0, 1]: how far up each weight shall go."""
        fraction = (steps - np.floor(steps)).astype(np.float32)
        variable = np.log((fraction - _SHIFT) / (_STRETCH + _SHIFT - fraction))
        mean, square = np.zeros_like(variable), np.zeros_like(variable)
        warm_up = _WARM_UP * self.iterations
        choice = choice.float32()
        for number in range(1, self.iterations + 1):
            sigmoid = 1 / (1 + np.exp(-variable))
            share = np.clip(_STRETCH * sigmoid + _SHIFT, 0, 1)
            gradient = choice.gradient(share)
            if number > warm_up:
                done = (number - warm_up) / (self.iterations - warm_up)
                beta = _BETA_END + (_BETA_BEGIN - _BETA_END) * (1 + np.cos(np.pi * done)) / 2
                off = 2 * share - 1
                pull = np.abs(off) ** (beta - 1) * np.sign(off)
                gradient -= 2 * self.regularisation * beta * pull
            gradient *= (share > 0) & (share < 1)
            gradient *= _STRETCH * sigmoid * (1 - sigmoid)
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (gradient**2 - square)
            rate = self.learning_rate / (1 - 0.9**number)
            variable -= rate * mean / (np.sqrt(square / (1 - 0.999**number)) + 1e-8)
        return np.clip(_STRETCH / (1 + np.exp(-variable)) + _SHIFT, 0, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """The outputs' squared error as a function of h, how far up each weight goes.

    error(h) = e^T G e - 2 e^T d with e = below + step * h: `below` is what the weights miss where
    all go down, `step` how far up takes them (0 where both ends saturate), d the shortfall. `unit`
    is the error that a weight of the channel makes on average.
    """

    gram: np.ndarray
    shortfall: np.ndarray
    below: np.ndarray
    step: np.ndarray
    unit: np.ndarray

    @classmethod
    def of(
        cls, weights: np.ndarray, grid: Grid, down: np.ndarray, up: np.ndarray, inputs: LayerInputs
    ) -> "Choice":
        scale = np.broadcast_to(grid.scale, weights.shape)
        zero_point = np.broadcast_to(grid.zero_point, weights.shape)
        below, step = (down - zero_point) * scale - weights, (up - down) * scale
        shortfall = np.broadcast_to(inputs.shortfall, weights.shape)
        unit = (step**2 * _diagonal(inputs.gram)[..., None]).mean(axis=-2, keepdims=True) / 12
        return cls(inputs.gram, shortfall, below, step, np.where(unit > 0, unit, 1.0))

    def float32(self) -> "Choice":
        """Returns the same in half the bytes."""
        values = dataclasses.astuple(self)
        return Choice(*(np.asarray(value, np.float32) for value in values))

    def error(self, share: np.ndarray) -> np.ndarray:
        """Returns each output channel's error, (..., 1, out)."""
        change = self.below + self.step * share
        terms = (self.gram @ change - 2 * self.shortfall) * change
        return terms.sum(axis=-2, keepdims=True)

    def gradient(self, share: np.ndarray) -> np.ndarray:
        """Returns d error / d h in units of the channel's `unit`."""
        change = self.below + self.step * share
        return 2 * self.step * (self.gram @ change - self.shortfall) / self.unit

    def turned_over(self, up: np.ndarray) -> np.ndarray:
        """Returns the choices after all single changes that help, the most helpful first."""
        slope = self.gram @ (self.below + self.step * up) - self.shortfall
        # One row per output channel; its group's Gram matrix is symmetric, so that rows serve.
        size, outputs = up.shape[-2:]
        gram = self.gram.reshape(-1, size, size)
        group = np.repeat(np.arange(len(gram)), outputs)
        slope, step, chosen, least = (
            np.swapaxes(array, -1, -2).reshape(len(group), -1).copy()
            for array in (slope, self.step, up, 1e-9 * self.unit)
        )
        change, own = np.where(chosen, -step, step), step**2 * _diagonal(gram)[group]
        row = np.arange(len(group))
        while row.size:
            gain = 2 * change * slope + own
            weight = gain.argmin(axis=1)
            helps = np.flatnonzero(gain[np.arange(len(row)), weight] < -least[:, 0])
            if len(helps) < 0.7 * len(row):  # the others are done
                slope, change, own, least = (a[helps] for a in (slope, change, own, least))
                row, group, weight = (a[helps] for a in (row, group, weight))
                helps = np.arange(len(row))
            turned = weight[helps]
            slope[helps] += gram[group[helps], turned] * change[helps, turned][:, None]
            change[helps, turned] *= -1
            chosen[row[helps], turned] ^= True
        return np.swapaxes(chosen.reshape(*up.shape[:-2], outputs, size), -1, -2)


def _diagonal(gram: np.ndarray) -> np.ndarray:
    return np.diagonal(gram, axis1=-2, axis2=-1)


def _check(weights: np.ndarray, inputs: LayerInputs) -> None:
    expected = (
        (*weights.shape[:-2], weights.shape[-2], weights.shape[-2]) if weights.ndim > 1 else ()
    )
    rule = f"must have a gram matrix of shape {expected} for weights of shape {weights.shape}"
    require(inputs.gram.shape == expected, "inputs of AdaRound", rule, gram=inputs.gram.shape)
