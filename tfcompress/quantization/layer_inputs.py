"""What a layer's weights are multiplied with, as far as the choice of their codes needs it."""

import dataclasses

import numpy as np

from tfcompress.errors import require
from tfcompress.quantization.grid import finite


@dataclasses.dataclass(frozen=True, eq=False)
class LayerInputs:
    """The second moments of a layer's inputs X, from which the error of its outputs follows.

    For weights (in, out) and X (samples, in): `gram` = X^T X, float64 (in, in), `count` samples.
    Moments of batches add up, so that no batch has to be kept. Leading axes are groups of their
    own, as in a depthwise convolution: weights (channels, in, out), X (channels, samples, in).

    `shortfall` = X^T (Y - X W), float64 (in, out), is what the outputs lack already because X comes
    from quantized layers before, where Y is what the layer should give; without it, 0. `total`
    (in,) and `missing` (out,) are the sums of X and of Y - X W, for layers that have a bias.

        inputs = LayerInputs.of(patches_1) + LayerInputs.of(patches_2)
    """

    gram: np.ndarray
    count: int
    shortfall: np.ndarray | float = 0.0
    total: np.ndarray | float = 0.0
    missing: np.ndarray | float = 0.0

    @classmethod
    def of(cls, inputs: np.ndarray, lacking: np.ndarray | None = None) -> "LayerInputs":
        """Returns the moments of `inputs` (..., samples, in).

        With `lacking` (..., samples, out), the outputs wanted less those of these inputs and the
        float weights, the rounding makes up for what the outputs lack.
        """
        inputs = finite(inputs, "Inputs of LayerInputs")
        shape, rule = inputs.shape, "must have shape (..., samples, in), not empty"
        require(inputs.ndim >= 2 and inputs.size > 0, "Inputs of LayerInputs", rule, shape=shape)
        across = np.swapaxes(inputs, -1, -2)
        gram = (across @ inputs).astype(np.float64)
        total = inputs.sum(axis=-2, dtype=np.float64)
        if lacking is None:
            return cls(gram, shape[-2], total=total)
        lacking = finite(lacking, "Outputs of LayerInputs")
        shapes = {"inputs": shape, "outputs": lacking.shape}
        require(lacking.shape[:-1] == shape[:-1], "Outputs of LayerInputs", "must fit", **shapes)
        shortfall = (across @ lacking).astype(np.float64)
        return cls(gram, shape[-2], shortfall, total, lacking.sum(axis=-2, dtype=np.float64))

    def __add__(self, other: "LayerInputs") -> "LayerInputs":
        shapes = {"first": self.gram.shape, "second": other.gram.shape}
        require(len(set(shapes.values())) == 1, "Moments of LayerInputs", "must fit", **shapes)
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return LayerInputs(*(mine + others for mine, others in pairs))

    def about_means(self) -> "LayerInputs":
        """Returns the moments about the means: of what no change of the bias makes up for."""
        total = np.asarray(self.total)
        gram = self.gram - total[..., :, None] * total[..., None, :] / self.count
        outer = total[..., :, None] * np.atleast_1d(self.missing)[..., None, :]
        return LayerInputs(gram, self.count, self.shortfall - outer / self.count)

    def bias_change(self, change: np.ndarray) -> np.ndarray:
        """Returns what to add to the bias where weights change by `change`: float64 (..., out).

        The outputs' mean over the samples is then the one wanted.
        """
        moved = np.einsum("...i,...io->...o", self.total, np.asarray(change, np.float64))
        return (self.missing - moved) / self.count

    def error(self, change: np.ndarray) -> np.ndarray:
        """Returns how much the outputs' squared error grows where weights change by `change`.

        Per output, float64 (..., out), summed over the samples. Without shortfall it is the squared
        error itself, ||X change||^2.
        """
        change = np.asarray(change, np.float64)
        return ((self.gram @ change - 2 * self.shortfall) * change).sum(axis=-2)
