"""Weight clustering while training."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import clustered, sharing
from tfcompress.callbacks.kernel_callback import KernelCallback
from tfcompress.clustered import Clustered, Plan
from tfcompress.errors import require, unknown
from tfcompress.projection import channel_value_groups, value_groups
from tfcompress.sharing import GRADIENTS, codes_of
from tfcompress.weights import Kernel

_OWNER = "ClusterOnSchedule"


class ClusterOnSchedule(KernelCallback):
    """From a step on, lets the weights of each kernel share few values while the model trains.

    At `begin_step` each kernel is clustered and replaced by its codebook's values. From then on the
    weights of a cluster stay equal after every single optimizer step, and with several levels each
    block stays the sum of entries of the codebooks. The model's layers are left as they are: when
    training ends it is an ordinary Keras model whose kernels hold few distinct values.

    Each epoch's `logs` receive `distinct_values` (the largest number of distinct non-zero values
    in a clustered kernel; codes, on a grid), `empty_clusters` (of those found when the kernels were
    last clustered, how many no block is in any more, over all kernels) and `cluster_seconds` (time
    spent in clustering).

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
            rule that matches wins), `skip` (a reason), `method`, `clusters`, `block`, `levels`,
            `per`.
        update_every: None: weights stay in their cluster, whose value trains (static clustering).
            A number (dynamic clustering): each block of weights keeps latent values beside, which
            its own steps move (the gradient passes straight through), and after every step it
            takes the nearest of the values that the clusters have by then. After so many steps the
            method finds the clusters again in the latent values; methods that go by steps go on
            from the clusters that there are. That is a blow from which the network needs some
            hundred steps to recover; with a number beyond the last step the values only train.
            With several levels there are no latent values: what is found again are the codebooks.
        freeze_step: with `update_every`, the step from which on weights stay in their cluster,
            whose value trains; after `begin_step`. BatchNorm's averages need these steps to catch
            up with the network that stays. None: for the last quarter of a `fit`, or of what is
            left of it after `begin_step`. Of data without a length an epoch is taken to have as
            many steps as the one before it; a `fit` of one such epoch has no quarter.
        clusters: how many, in place of the method's own number.
        levels: codebooks whose entries are added up, see `tfc.cluster`.
        per: "kernel" or "channel": a codebook for each kernel or each of its output channels.
        grid: "int8": the kernel keeps to at most `clusters` codes of the int8 grid, zero among
            them, times a scale for each channel (or for the kernel, where its file has one). The
            codes stay, the scales train, so that the `.tflite` has those very codes. For models
            that `quantize_aware` or `fold_batch_norm` has made.
        gradients: "mean": the weights of a cluster take their mean after a step, which moves it by
            the mean of their gradients times the learning rate. "sum": it moves by the sum of their
            steps, which for SGD is gradient descent of the codebook (Han et al. 2016); a cluster of
            n weights learns n times as fast. Adam's steps are normalised weight by weight: their
            mean hardly moves a large cluster, their sum takes it n learning rates away. "root",
            for such optimizers: by their sum over the root of n, at most as far as those weights
            (root mean square) would have gone themselves, about as Adam would move the codebook.

    Raises:
        InputError: before training starts, if an argument or a rule cannot be used.

    A stage of a recipe that goes on after an interruption ends as if there had been none. A `fit`
    with `BackupAndRestore` finds its clusters in the weights; those of several levels cannot be
    told from them and are found anew, and latent values start at the weights.

    Sources: Han, Mao and Dally 2016, "Deep Compression" (static); van den Oord et al. 2017, "Neural
    discrete representation learning" (nearest entry, straight-through gradient).

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
        *,
        freeze_step: int | None = None,
        clusters: int | str | None = None,
        levels: int = 1,
        per: str = "kernel",
        grid: str | None = None,
        gradients: str = "mean",
    ):
        super().__init__()
        plan = Plan(_OWNER, method, block, levels, per, keep_zeros, grid)
        self.plan = plan if clusters is None else plan.with_clusters(clusters)
        self.plan.check_grid()
        require(
            isinstance(begin_step, int) and begin_step >= 0,
            "begin_step of ClusterOnSchedule",
            "must be an integer of at least 0",
            begin_step=begin_step,
        )
        self._check_update_every(update_every)
        _check_freeze_step(freeze_step, begin_step, update_every)
        if gradients not in GRADIENTS:
            raise unknown(f"gradients of {_OWNER}", gradients, GRADIENTS)
        if grid is not None:
            fixed = gradients == "mean" and update_every is None
            rule = "trains scales alone: without update_every and with gradients='mean'"
            owner = f"grid {grid!r} of {_OWNER}"
            require(fixed, owner, rule, gradients=gradients, update_every=update_every)
        self.begin_step = begin_step
        self.rules = tuple(rules)
        self.update_every = update_every
        self.freeze_step = freeze_step
        self.gradients = gradients
        self._plans: dict[str, Plan] = {}
        self._axes: dict[str, tuple[int, ...] | None] = {}
        self._found: dict[str, Clustered] = {}
        self._counts: dict[str, int] = {}  # by path, of clusters when they were found
        self._forms: dict[str, Any] = {}
        self._frozen_from: float = math.inf if freeze_step is None else freeze_step
        self._epoch_started: int | None = None

    def on_train_begin(self, logs=None):
        self._epoch_started = None
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if self.gradients == "sum" and not isinstance(optimizer, keras.optimizers.SGD):
            _tell(
                f"gradients='sum' moves a cluster of n weights by the sum of n steps, which "
                f"{type(optimizer).__name__} has normalised: too far for most models. 'root' is "
                "for such optimizers"
            )
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        if self.freeze_step is None and self.update_every is not None:
            self._frozen_from = self._last_quarter(epoch)
        self._epoch_started = self._step()
        super().on_epoch_begin(epoch, logs)

    def select(self) -> list[Kernel]:
        targets, chosen = self._choose([key for key in clustered.KEYS if key != "group"])
        if self.plan.grid is not None:
            clustered.check_folded(self.model, f"grid of {_OWNER}")
            self._axes = clustered.scale_axes(self.model, targets)
            for kernel in targets:
                if self._axes[kernel.path] is None:
                    kind = type(kernel.layer).__name__
                    self.skipped[kernel.path] = f"int8 files have no kernel of {kind}"
            targets = [kernel for kernel in targets if kernel.path not in self.skipped]
            rule = "needs a kernel of a layer that int8 files hold"
            require(targets, f"grid of {_OWNER}", rule)
        self._plans = {k.path: self.plan.of_rule(chosen[k.path]) for k in targets}
        for kernel in targets:
            plan = self._plans[kernel.path]
            plan.check(kernel)
            _check_finite(kernel, kernel.value())
            rule = "must be 'kernel' or 'channel': kernels train each for itself"
            require(plan.per != "model", f"per of {_OWNER}", rule, per=plan.per)
        return targets

    def update(self, previous_step, step):
        frozen = step >= self._frozen_from
        if previous_step is None or frozen != (previous_step >= self._frozen_from):
            for kernel in filter(self._moves, self.targets):
                self._forms[kernel.path].move(not frozen)
        if self._update_number(step) in (0, self._update_number(previous_step)):
            return
        for kernel in self.targets:
            form, projection = self._forms[kernel.path], self.projections[kernel.path]
            if previous_step is None and form.holds(kernel.value()):
                projection.use(form)  # all that it knew was restored
                continue
            in_use = self._moves(kernel) and projection.sharing is form
            w = form.latent if in_use else kernel.value()
            _check_finite(kernel, w)
            # At step 0 there is no earlier training whose clusters the weights could tell.
            goes_on = previous_step is None and step > 0
            values, where = w, self._resumed(kernel, w) if goes_on else None
            if where is None:
                values, where = self._cluster(kernel, w, form.centroids if in_use else None)
            self._counts[kernel.path] = self._used(kernel, where)
            projection.share(form, where, w)
            kernel.variable.assign(values)

    def measures(self):
        distinct = [
            len(np.unique(x[x != 0])) for x in (self._symbols(kernel) for kernel in self.targets)
        ]
        return {
            "distinct_values": max(distinct),
            "empty_clusters": sum(self._empty(kernel) for kernel in self.targets),
            "cluster_seconds": self.seconds,
        }

    def missed(self, step):
        due = self._update_number(step)
        return "" if due else f"begin_step={self.begin_step}: no kernel was clustered"

    def _install(self):
        super()._install()
        with self.model.distribute_strategy.scope():
            self._forms = {kernel.path: self._form(kernel) for kernel in self.targets}

    def _form(self, kernel: Kernel) -> Any:
        projection, plan = self.projections[kernel.path], self._plans[kernel.path]
        axes = self._axes.get(kernel.path)
        if axes is not None:
            return projection.allow_scales(axes)
        size = clustered.shape_of(plan, plan.channels(kernel))
        if self._moves(kernel):
            layout = clustered.layout(kernel.variable.shape, plan, kernel.output_axes)
            return projection.allow_latent(layout, size["columns"], self.gradients)
        return projection.allow_sums(**size, gradients=self.gradients)

    def _moves(self, kernel: Kernel) -> bool:
        """Returns whether the kernel's weights change their cluster while they train."""
        return self.update_every is not None and self._plans[kernel.path].levels == 1

    def _update_number(self, step: int | None) -> int:
        """How many times clusters were due until `step`."""
        if step is None or step < self.begin_step:
            return 0
        if self.update_every is None:
            return 1
        last = int(min(step, self._frozen_from - 1))
        return 1 + max(0, last - self.begin_step) // self.update_every

    def _last_quarter(self, epoch: int) -> float:
        """Returns at which step it starts, as an epoch begins; infinity: that is unknown."""
        epochs, steps = self.params.get("epochs"), self._steps_of_epoch()
        if not epochs or not steps:
            return math.inf
        end = self._step() + (epochs - epoch) * steps
        return end - min(epochs * steps, max(0, end - self.begin_step)) // 4

    def _steps_of_epoch(self) -> float:
        """Returns what Keras knows, or the epoch before tells, as an epoch begins; 0: unknown."""
        if batches := self.params.get("steps"):
            optimizer = self.model.optimizer
            return batches / (getattr(optimizer, "gradient_accumulation_steps", None) or 1)
        return 0 if self._epoch_started is None else self._step() - self._epoch_started

    def _cluster(
        self, kernel: Kernel, w: np.ndarray, start: list[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the clustered kernel and which number each of its weights has."""
        plan, axes = self._plans[kernel.path], self._axes.get(kernel.path)
        if axes is not None:
            codes, w = clustered.cluster_codes(w, axes, plan.method.clusters, plan.keep_zeros)
            return w, codes
        found = clustered.cluster_kernel(w, plan, kernel.output_axes, start=start)
        self._found[kernel.path] = found
        _tell(found.remark(kernel.path, plan))
        return found.values, found.places

    def _resumed(self, kernel: Kernel, w: np.ndarray) -> np.ndarray | None:
        """Returns the numbers that a resumed fit finds in the weights; None: it does not."""
        plan, axes = self._plans[kernel.path], self._axes.get(kernel.path)
        if axes is not None:
            codes = codes_of(w, axes)
            few = codes is not None and len(np.unique(codes)) <= plan.method.clusters
            return codes if few else None
        if self._moves(kernel):
            return self._forms[kernel.path].find(w)
        size = clustered.shape_of(plan, plan.channels(kernel))
        if plan.levels > 1:
            # What this callback has found in an earlier fit, if the kernel is still of that form.
            found = self._found.get(kernel.path)
            kept = found is not None and sharing.fits(
                found.places, w, size["cells"], size["columns"]
            )
            return found.places if found is not None and kept else None
        by_channel = plan.per == "channel"
        groups = channel_value_groups(w, kernel.output_axes) if by_channel else value_groups(w)
        return groups[np.newaxis] if 0 < groups.max() <= size["cells"] * size["columns"] else None

    def _symbols(self, kernel: Kernel) -> np.ndarray:
        axes = self._axes.get(kernel.path)
        form = self.projections[kernel.path].sharing
        shared = axes is not None and form is self._forms[kernel.path]
        return form.codes if shared else kernel.value()

    def _empty(self, kernel: Kernel) -> int:
        """Returns how many of the kernel's clusters no block is in any more."""
        form = self._forms[kernel.path]
        if self.projections[kernel.path].sharing is not form:
            return 0
        on_grid = self._axes.get(kernel.path) is not None
        used = self._used(kernel, form.codes if on_grid else form.places)
        if self._moves(kernel):
            return sum(map(len, form.centroids)) - used
        return self._counts.get(kernel.path, used) - used

    def _used(self, kernel: Kernel, where: np.ndarray) -> int:
        """Returns how many clusters there are in numbers of `_cluster`."""
        if self._axes.get(kernel.path) is not None:
            return len(np.unique(where))
        plan = self._plans[kernel.path]
        size = clustered.shape_of(plan, plan.channels(kernel))
        # A cluster of blocks has a number for each weight of a block.
        book, entry = np.divmod(where[where > 0] - 1, size["columns"])
        width = plan.block[0] * plan.block[1]
        return len(np.unique(book // width * size["columns"] + entry))


def _check_freeze_step(freeze_step: int | None, begin_step: int, update_every: int | None) -> None:
    if freeze_step is None:
        return
    owner = f"freeze_step of {_OWNER}"
    rule = "is for dynamic clusters, with update_every"
    require(update_every is not None, owner, rule, freeze_step=freeze_step, update_every=None)
    late = isinstance(freeze_step, int) and freeze_step > begin_step
    rule = "must be an integer above begin_step"
    require(late, owner, rule, freeze_step=freeze_step, begin_step=begin_step)


def _check_finite(kernel: Kernel, w: np.ndarray) -> None:
    require(np.isfinite(w).all(), f"Weights of {kernel.path}", "must be finite to be clustered")


def _tell(remark: str) -> None:
    if remark:
        warnings.warn(f"{_OWNER}: {remark}", stacklevel=2)
