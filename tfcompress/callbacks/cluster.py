"""Weight clustering while training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress import clustering
from tfcompress.callbacks.kernel_callback import KernelCallback
from tfcompress.errors import require
from tfcompress.projection import value_groups
from tfcompress.weights import Kernel, from_blocks, to_blocks


class ClusterOnSchedule(KernelCallback):
    """From a step on, lets the weights of each kernel share few values while the model trains.

    At `begin_step` each kernel is clustered and replaced by its codebook's values. From then on the
    weights of a cluster stay equal after every single optimizer step: they take their mean, which
    is gradient descent of the centroid with the mean gradient. The model's layers are left as they
    are: when training ends it is an ordinary Keras model whose kernels hold few distinct values.

    Each epoch's `logs` receive `distinct_values` (the largest number of distinct non-zero values
    in a clustered kernel) and `cluster_seconds` (time spent in clustering).

    Args:
        method: the clustering method; see `tfcompress.clustering.METHODS`. A name, a
            `{name: arguments}` mapping or an object.
        begin_step: the step at which the kernels are clustered, at least 0, counted from where this
            callback met the model. A warning says so if training ends before it.
        block: rows and columns of the blocks that are clustered; a kernel is seen as a matrix of
            inputs x outputs. (1, 1) clusters single weights.
        keep_zeros: whether weights that are zero stay zero, beside the method's clusters.
        rules: what differs for some kernels, e.g. `{"layers": "head/.*", "clusters": 32}`. Keys:
            `layers` (a regular expression that matches the whole path of kernel or layer; the last
            rule that matches wins), `skip` (a reason), `method`, `clusters`, `block`.
        update_every: steps after which clusters are found again (dynamic clustering), or None to
            keep them and train only their values.

    Raises:
        InputError: before training starts, if an argument or a rule cannot be used.

    Source: Han, Mao and Dally 2016, "Deep Compression".

    Example:

        model.fit(x, y, epochs=2, callbacks=[
            tfc.ClusterOnSchedule(tfc.clustering.KMeans(clusters=16))])
    """

    def __init__(
        self,
        method: Any = "kmeans",
        begin_step: int = 0,
        block: Sequence[int] = (1, 1),
        keep_zeros: bool = True,
        rules: Sequence[Mapping[str, Any]] = (),
        update_every: int | None = None,
    ):
        super().__init__()
        self.method = clustering.METHODS.create(method)
        require(
            isinstance(begin_step, int) and begin_step >= 0,
            "begin_step of ClusterOnSchedule",
            "must be an integer of at least 0",
            begin_step=begin_step,
        )
        require(
            update_every is None or (isinstance(update_every, int) and update_every >= 1),
            "update_every of ClusterOnSchedule",
            "must be None or an integer of at least 1",
            update_every=update_every,
        )
        self.begin_step = begin_step
        self.block = _block(block)
        self.keep_zeros = keep_zeros
        self.rules = tuple(rules)
        self.update_every = update_every
        self._plans: dict[str, tuple[Any, tuple[int, int]]] = {}

    def select(self) -> list[Kernel]:
        targets, chosen = self._choose(("method", "clusters", "block"))
        self._plans = {kernel.path: self._plan(kernel, chosen[kernel.path]) for kernel in targets}
        return targets

    def update(self, previous_step, step):
        if self._update_number(step) in (0, self._update_number(previous_step)):
            return
        for kernel in self.targets:
            w = kernel.value()
            groups = value_groups(w)
            # A resumed fit finds its clusters in the weights.
            resumed = previous_step is None and 0 < groups.max() <= self._most_groups(kernel)
            if not resumed:
                w, groups = self._cluster(kernel, w)
            self.projections[kernel.path].set_groups(groups)
            kernel.variable.assign(w)

    def measures(self):
        distinct = [len(np.unique(w[w != 0])) for w in (kernel.value() for kernel in self.targets)]
        return {"distinct_values": max(distinct), "cluster_seconds": self.seconds}

    def missed(self, step):
        due = self._update_number(step)
        return "" if due else f"begin_step={self.begin_step}: no kernel was clustered"

    def _install(self):
        super()._install()
        with self.model.distribute_strategy.scope():
            for kernel in self.targets:
                self.projections[kernel.path].allow_groups(self._most_groups(kernel))

    def _update_number(self, step: int | None) -> int:
        """How many times clusters were due until `step`."""
        if step is None or step < self.begin_step:
            return 0
        return 1 + (step - self.begin_step) // self.update_every if self.update_every else 1

    def _plan(self, kernel: Kernel, rule: Mapping[str, Any]) -> tuple[Any, tuple[int, int]]:
        method = clustering.METHODS.create(rule.get("method", self.method))
        if "clusters" in rule:
            method = clustering.METHODS.create(
                {
                    name: arguments | {"clusters": rule["clusters"]}
                    for name, arguments in clustering.METHODS.describe(method).items()
                }
            )
        size = int(np.prod(kernel.variable.shape))
        require(
            method.clusters == "auto" or method.clusters <= size,
            f"clusters for {kernel.path}",
            f"must not be more than its {size} weights (a rule with `clusters` or `skip` helps)",
            clusters=method.clusters,
        )
        return method, _block(rule.get("block", self.block))

    def _most_groups(self, kernel: Kernel) -> int:
        method, block = self._plans[kernel.path]
        return clustering.most(method) * block[0] * block[1] + (not self.keep_zeros)

    def _cluster(self, kernel: Kernel, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the clustered kernel and which of its weights share a value."""
        method, block = self._plans[kernel.path]
        blocks = to_blocks(w, block)
        used = blocks.any(axis=1) if self.keep_zeros else np.ones(len(blocks), bool)
        if not used.any():
            return w, np.zeros(w.shape, np.int32)
        codebook = method.fit(blocks[used])
        width = blocks.shape[1]
        places = np.zeros(blocks.shape, np.int32)
        places[used] = 1 + codebook.indices[:, None] * width + np.arange(width)
        values = np.zeros_like(blocks)
        values[used] = codebook.decode()
        groups = from_blocks(places, w.shape, block)
        values = from_blocks(values, w.shape, block)
        if self.keep_zeros:
            groups, values = np.where(w == 0, 0, groups), np.where(w == 0, 0, values)
        return values.astype(np.float32), groups


def _block(block: Any) -> tuple[int, int]:
    require(
        len(tuple(block)) == 2 and all(isinstance(size, int) and size >= 1 for size in block),
        "block of ClusterOnSchedule",
        "must be two integers of at least 1",
        block=block,
    )
    rows, columns = block
    return rows, columns
