"""Models whose weights share few values."""

import dataclasses
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import graph
from tfcompress import rules as rules_
from tfcompress.clustered import budget
from tfcompress.clustered.blocks import Clustered, cluster_kernel, cluster_together
from tfcompress.clustered.codes import cluster_codes
from tfcompress.clustered.plan import KEYS, Plan, scale_axes
from tfcompress.errors import InputError, require, unknown
from tfcompress.structured import fold_batch_norm
from tfcompress.structured.fold import can_fold
from tfcompress.weights import Kernel, kernels, origin_paths

_OWNER = "cluster"


def cluster(
    model: keras.Model,
    method: Any = "kmeans",
    clusters: int | str | None = None,
    *,
    block: Sequence[int] = (1, 1),
    levels: int = 1,
    per: str = "kernel",
    keep_zeros: bool = True,
    importance: Mapping[str, np.ndarray] | None = None,
    rules: Sequence[Mapping[str, Any]] = (),
    max_bytes: float | None = None,
    max_error: float | None = None,
    grid: str | None = None,
) -> keras.Model:
    """Returns a new model in whose kernels blocks of weights share few values; `model` stays.

    Each kernel is cut into blocks, the blocks are clustered, and each becomes its centroid. The new
    model is not compiled; train it on with `callbacks=[tfc.Preserve()]`, which keeps equal what is
    equal within a kernel (not sums of `levels`, nor one codebook for several kernels), or cluster
    while training with `ClusterOnSchedule`, which takes the same words but for `importance`,
    budgets, `per="model"` and `group`. `tfc.compare_clusterings` compares
    methods, `tfcompress.report.cluster_plots` draws a kernel before and after.

    Args:
        method: a clustering method of `tfcompress.clustering.METHODS`: a name, `{name: arguments}`
            or an object.
        clusters: how many, in place of the method's own number.
        block: rows and columns of a block; a kernel is seen as a matrix of inputs x outputs.
        levels: codebooks whose centroids are added up: each clusters what the ones before leave
            over, then all are fitted together. In [1, 8].
        per: "kernel": a codebook for each kernel; "channel": one for each of its output channels;
            "model": one for all kernels. Kernels whose rules name one `group` share a codebook.
        keep_zeros: whether weights that are zero stay zero, beside the clusters.
        importance: by path of the kernel how much each weight's squared error counts, arrays of the
            kernels' shapes, at least 0; `tfc.fisher(model, data)` says by how much the loss grows.
            A block counts as the mean of its weights.
        rules: what differs for some kernels: `{"layers": REGEX, ...}` with `skip` (a reason) or any
            of `method`, `clusters`, `block`, `levels`, `per`, `group`.
        max_bytes: bytes of all clustered kernels, codebooks in float32 and indices entropy coded:
            each kernel (or group) gets the number of clusters in [2, 256] with which the squared
            error of the whole model is least; a rule's `clusters` stays. `clusters` and `grid` are
            None then, and a method's own number does not count.
        max_error: the same the other way round: the fewest bytes with a sum of squared errors of
            at most this share of the sum of all squared weights, in (0, 1).
        grid: "int8": clusters the integers that the int8 file will hold, after BatchNorm folding
            and scaling per channel, so that the `.tflite` has at most `clusters` different codes in
            each kernel, zero among them. BatchNorm is folded in the new model. Only with `kmeans`
            of single weights. A `quantize_aware` model is clustered after it was made: one that is
            made of a clustered model gives its Dense kernels one scale, which other codes suit.

    Raises:
        InputError: an argument or rule that cannot be used, weights that are not finite, a block
            larger than a kernel, more clusters than weights, a budget that cannot be met.

    Sources: Han et al. 2016, "Deep Compression"; Gersho and Gray 1992, "Vector quantization and
    signal compression" (blocks, levels, entropy).

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16)])
    >>> small = cluster(model, "kmeans", clusters=4)
    >>> len(np.unique(small.layers[0].kernel))
    4
    """
    new, plans = planned(
        model,
        method,
        clusters,
        importance=importance,
        rules=rules,
        max_bytes=max_bytes,
        max_error=max_error,
        grid=grid,
        block=block,
        levels=levels,
        per=per,
        keep_zeros=keep_zeros,
    )
    weights = _importance(importance, new, plans)
    if grid is not None:
        _onto_grid(new, plans, weights)
        return new
    groups = _groups(plans)
    within_budget = max_bytes is not None or max_error is not None
    if within_budget:
        groups = _within(groups, weights, max_bytes, max_error)
    for group in groups.values():
        for (kernel, own), found in zip(group, _clustered(group, weights), strict=True):
            kernel.variable.assign(found.values)
            remark = found.remark(kernel.path, own)
            if remark and not within_budget:
                warnings.warn(remark, stacklevel=2)
    return new


Group = list[tuple[Kernel, Plan]]


def planned(
    model: keras.Model,
    method: Any = "kmeans",
    clusters: int | str | None = None,
    *,
    importance: Any = None,
    rules: Sequence[Mapping[str, Any]] = (),
    max_bytes: float | None = None,
    max_error: float | None = None,
    grid: str | None = None,
    **words: Any,
) -> tuple[keras.Model, Group]:
    """Returns the copy of `model` that `cluster` changes, and how it clusters each kernel.

    Takes the arguments of `cluster` and refuses what it refuses, but for what only the clusters
    tell: whether a budget can be met.
    """
    plan = Plan(_OWNER, method, grid=grid, **words)
    plan = plan if clusters is None else plan.with_clusters(clusters)
    plan.check_grid()
    _check_budget(clusters, grid, max_bytes, max_error)
    new = _copy(model, grid, importance)
    within_budget = max_bytes is not None or max_error is not None
    plans = _plans(_named_as_in(model, new), plan, rules, within_budget)
    _groups(plans)
    return new, plans


def _onto_grid(model: keras.Model, plans: Group, weights: Mapping[str, np.ndarray]) -> None:
    axes = scale_axes(model, [kernel for kernel, _ in plans])
    for kernel, plan in plans:
        on_axes, w = axes[kernel.path], kernel.value()
        if on_axes is None:
            kind = type(kernel.layer).__name__
            text = f"{kernel.path} is left as it is: int8 files have no kernel of {kind}"
            warnings.warn(text, stacklevel=3)
            continue
        if w.min() == w.max():
            text = f"{kernel.path} is constant: it has one cluster"
            warnings.warn(text, stacklevel=3)
        clusters, counted = plan.method.clusters, weights.get(kernel.path)
        kernel.variable.assign(cluster_codes(w, on_axes, clusters, plan.keep_zeros, counted)[1])


def _copy(model: keras.Model, grid: str | None, importance: Any) -> keras.Model:
    kernels(model)  # refuses what is no built Keras 3 model
    if grid is not None and can_fold(model):
        require(
            importance is None,
            "importance of cluster",
            "needs a model whose BatchNorm is folded (tfc.fold_batch_norm), to speak of the "
            f"weights on the grid {grid!r}",
            type=type(importance).__name__,
        )
        return fold_batch_norm(model)
    if not isinstance(model, keras.Sequential) and not hasattr(model, "_nodes_by_depth"):
        raise InputError(
            f"{type(model).__name__} '{model.name}' must be a functional or Sequential model for "
            "cluster; ClusterOnSchedule clusters subclassed ones while they train."
        )
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    return new


def _named_as_in(model: keras.Model, new: keras.Model) -> list[Kernel]:
    """Returns the kernels of `new` by the paths of `model`: folding leaves no model in a model."""
    found = kernels(new)
    if {kernel.path for kernel in found} <= {kernel.path for kernel in kernels(model)}:
        return found
    names = origin_paths(model, graph.flatten(model)[1])

    def path_of(path: str) -> str:
        layer, *rest = path.split("/")
        return "/".join([names.get(layer, layer), *rest])

    return [
        dataclasses.replace(k, path=path_of(k.path), layer_path=path_of(k.layer_path))
        for k in found
    ]


def _plans(
    found: list[Kernel], plan: Plan, rules: Sequence[Mapping[str, Any]], within_budget: bool
) -> Group:
    chosen = rules_.resolve(rules, found, KEYS)
    targets = [kernel for kernel in found if "skip" not in chosen[kernel.path]]
    require(targets, _OWNER, "needs at least one kernel that no rule skips")
    pairs = [(kernel, plan.of_rule(chosen[kernel.path])) for kernel in targets]
    if within_budget:  # which finds all numbers but those of rules
        pairs = [(k, own if own.fixed else own.with_clusters(2)) for k, own in pairs]
    for kernel, own in pairs:
        finite = np.isfinite(kernel.value()).all()
        require(finite, f"Weights of {kernel.path}", "must be finite to be clustered")
        own.check(kernel)
    return pairs


def _importance(importance: Any, model: keras.Model, plans: Group) -> dict[str, np.ndarray]:
    """Returns the importance by path, above 0: the least counts a millionth of the mean, so that
    weights without any influence still have a value that is theirs."""
    if importance is None:
        return {}
    mapping, given = isinstance(importance, Mapping), type(importance).__name__
    rule = "must be a mapping from paths of kernels to arrays"
    require(mapping, f"importance of {_OWNER}", rule, type=given)
    paths = [kernel.path for kernel in kernels(model)]
    for path in importance:
        if path not in paths:
            raise unknown("path of a kernel in importance", path, paths)
    found = {}
    for kernel, _ in plans:
        owner = f"importance of {kernel.path}"
        require(kernel.path in importance, owner, "is missing", given=sorted(importance))
        try:
            array = np.asarray(importance[kernel.path], np.float64)
        except (TypeError, ValueError):
            given = type(importance[kernel.path]).__name__
            raise InputError(f"{owner} must be an array of numbers. Received: {given}") from None
        shape = tuple(kernel.variable.shape)
        require(array.shape == shape, owner, f"must have shape {shape}", shape=array.shape)
        valid = np.isfinite(array).all() and array.min() >= 0
        require(valid, owner, "must be finite and not negative")
        found[kernel.path] = array
    mean = sum(array.sum() for array in found.values()) / sum(a.size for a in found.values())
    return {path: np.maximum(array, 1e-6 * (mean or 1.0)) for path, array in found.items()}


def _groups(plans: Group) -> dict[str, Group]:
    """Returns the kernels by codebook: those of one group, or each for itself."""
    groups: dict[str, Group] = {}
    for kernel, plan in plans:
        if plan.per == "model":
            name = "the model"
        else:
            name = f"group {plan.group}" if plan.group else kernel.path
        groups.setdefault(name, []).append((kernel, plan))
    for name, group in groups.items():
        same = all(plan == group[0][1] for _, plan in group)
        require(same, f"Kernels of {name}", "must have the same method, block and levels")
    return groups


def _clustered(group: Group, weights: Mapping[str, np.ndarray]) -> list[Clustered]:
    plan = group[0][1]
    values = [kernel.value() for kernel, _ in group]
    counted = [weights[kernel.path] for kernel, _ in group] if weights else None
    if plan.per == "channel":
        ((kernel, _),) = group
        return [
            cluster_kernel(values[0], plan, kernel.output_axes, counted[0] if counted else None)
        ]
    return cluster_together(values, plan, counted)


def _within(
    groups: dict[str, Group],
    weights: Mapping[str, np.ndarray],
    max_bytes: float | None,
    max_error: float | None,
) -> dict[str, Group]:
    """Returns the groups with numbers of clusters that keep the budget."""
    total = sum(_power(kernel, weights) for group in groups.values() for kernel, _ in group)
    options = {name: _options(group, weights, total) for name, group in groups.items()}
    chosen = budget.choose(options, max_bytes, max_error)
    return {
        name: [(kernel, plan.with_clusters(chosen[name])) for kernel, plan in group]
        for name, group in groups.items()
    }


def _power(kernel: Kernel, weights: Mapping[str, np.ndarray]) -> float:
    squares = kernel.value().astype(np.float64) ** 2
    return float((squares * weights.get(kernel.path, 1.0)).sum())


def _options(group: Group, weights: Mapping[str, np.ndarray], total: float) -> list[budget.Option]:
    plan = group[0][1]
    width = plan.block[0] * plan.block[1] * plan.channels(group[0][0])
    size = sum(int(np.prod(kernel.variable.shape)) for kernel, _ in group)
    options: list[budget.Option] = []
    for clusters in [plan.method.clusters] if plan.fixed else budget.CLUSTERS:
        if options and clusters * width > size:
            break
        own = [(kernel, plan.with_clusters(clusters)) for kernel, plan in group]
        found = _clustered(own, weights)
        bits = sum(one.index_bits for one in found)
        error = sum(one.error for one in found) / max(total, 1e-300)
        options.append(budget.Option(clusters, found[0].codebook_bytes + bits / 8, error))
    return options


def _check_budget(clusters: Any, grid: Any, max_bytes: Any, max_error: Any) -> None:
    given = {"max_bytes": max_bytes, "max_error": max_error}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return
    require(
        len(given) == 1 and clusters is None and grid is None,
        "cluster",
        "takes one of max_bytes and max_error, without clusters and grid",
        **given | {"clusters": clusters, "grid": grid},
    )
    ((name, value),) = given.items()
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and float(value) > 0
    fits = number and (name == "max_bytes" or float(value) < 1)
    rule = "must be above 0" if name == "max_bytes" else "must be in (0, 1)"
    require(fits, f"{name} of cluster", rule, **given)
