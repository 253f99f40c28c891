"""How much each group of channels can lose: the loss over the share of channels that are silent."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from tfcompress.errors import InputError, call, require
from tfcompress.pruning import selection
from tfcompress.structured import evaluation, slices
from tfcompress.structured.evidence import collect
from tfcompress.structured.groups import Group, channel_groups
from tfcompress.structured.ranking import score_groups
from tfcompress.structured.scores import SCORES

_MOST_LINES = 12  # in colour, with a legend; further groups are grey
_MUTED = "#c4ccd4"


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The loss of a model with a share of one group's channels silent; see `sensitivity`.

    groups: the groups' names; sizes: how many channels each has; sparsities: shares in [0, 1);
    losses: by name of the group, one mean loss for each sparsity; loss: the whole model's. With a
    metric, `metrics` and `metric` say the same of it, else they are None. `str()` is a table,
    `to_dict()` plain values, `plot()` a figure.
    """

    score: str
    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    sparsities: tuple[float, ...]
    loss: float
    losses: dict[str, tuple[float, ...]]
    metric_name: str | None = None
    metric: float | None = None
    metrics: dict[str, tuple[float, ...]] | None = None

    def most_sensitive(self) -> tuple[str, ...]:
        """Returns the groups' names, that with the highest mean loss first."""
        return tuple(sorted(self.groups, key=lambda name: -float(np.mean(self.losses[name]))))

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as numbers, strings, lists and dicts, fit for JSON."""
        found = dataclasses.asdict(self)
        for key in ("groups", "sizes", "sparsities"):
            found[key] = list(found[key])
        for key in ("losses", "metrics"):
            if found[key] is not None:
                found[key] = {name: list(row) for name, row in found[key].items()}
        return found

    def __str__(self) -> str:
        parts = [self._table("loss", self.loss, self.losses, "{:9.4f}")]
        if self.metrics is not None and self.metric is not None:
            parts.append(self._table(f"{self.metric_name}", self.metric, self.metrics, "{:9.4f}"))
        return "\n\n".join(parts)

    def _table(self, what: str, whole: float, rows: dict[str, tuple[float, ...]], form: str) -> str:
        wide = max(len(name) for name in (*self.groups, "group"))
        heads = "".join(f"{sparsity:9.0%}" for sparsity in self.sparsities)
        lines = [
            f"{what} with the channels lowest by {self.score} silent, group by group "
            f"(none silent: {form.format(whole).strip()})",
            f"{'group':{wide}}  channels{heads}",
        ]
        for name, size in zip(self.groups, self.sizes, strict=True):
            numbers = "".join(form.format(number) for number in rows[name])
            lines.append(f"{name:{wide}}  {size:8}{numbers}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Returns a figure: the loss over the share of silent channels, a line for each group.

        The 12 most sensitive groups are in colour, named in order; all others are grey.
        """
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        axes = figure.add_subplot()
        named = self.most_sensitive()[:_MOST_LINES]
        x = 100 * np.array([0.0, *self.sparsities])
        for name in self.groups:
            if name not in named:
                axes.plot(x, [self.loss, *self.losses[name]], color=_MUTED, linewidth=0.8)
        for number, name in enumerate(named):
            label = name.replace("$", r"\$")  # a dollar sign would start a formula
            style = "-" if number < 10 else "--"  # the colours repeat after ten
            axes.plot(x, [self.loss, *self.losses[name]], style, marker=".", label=label)
        axes.axhline(self.loss, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlabel(f"channels of one group silent, lowest by {self.score} first (%)")
        axes.set_ylabel("loss")
        axes.spines[["top", "right"]].set_visible(False)
        where: Any = "outside right upper"
        figure.legend(loc=where, frameon=False, fontsize=8)
        return figure


def sensitivity(
    model: keras.Model,
    data: Any,
    loss: Any = None,
    score: Any = "magnitude",
    sparsities: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    metric: Any = None,
    *,
    batches: int = 16,
    batch_size: int = 64,
) -> Sensitivity:
    """Returns, for each group of channels, the loss when a share of it is silent; `model` stays.

    In one group after the other the channels that are lowest by `score` lose their effect: the
    weights that read them count as zero (where channels are multiplied with others and no weight
    reads them, as the dimensions of queries and keys, the weights that make them do). That is what
    their removal does before fine-tuning, except where `Group.inexact` says otherwise. The whole
    table takes groups x sparsities passes over the batches.

    Args:
        data: (x, y) and the other forms of `tfcompress.structured.evaluation.batches`.
        loss: as `compile` takes it; None: the one that the model is compiled with.
        score: in which order channels go: a name, `{name: arguments}` or an object of `SCORES`.
        sparsities: shares of a group's channels, each in [0, 1). The nearest whole number of
            channels is silent, and one is always left.
        metric: one more figure, as `compile` takes it in `metrics`, for example "accuracy".
        batches: at most so many batches are read; the same ones every time.
        batch_size: rows of a batch where `data` is arrays.

    Raises:
        InputError: for a model without free channels or a subclassed one, a sparsity out of range,
            data that does not fit, no loss, weights or a loss that is not finite.

    Source: Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.2.

    Example:

        found = tfc.sensitivity(model, (x, y), metric="accuracy")
        print(found)
        found.plot().savefig("sensitivity.png")
    """
    method = SCORES.create(score)
    shares = tuple(float(sparsity) for sparsity in sparsities)
    require(
        shares and all(0 <= share < 1 for share in shares),
        "sparsities of sensitivity",
        "must be numbers in [0, 1)",
        sparsities=sparsities,
    )
    groups = channel_groups(model)
    if not len(groups):
        reasons = "; ".join(f"{path}: {why}" for path, why in list(groups.pinned.items())[:3])
        raise InputError(f"Model '{model.name}' must have free channels. It has none: {reasons}")
    evidence = collect(
        model, groups, data, loss, method.needs, batches=batches, batch_size=batch_size
    )
    scores = score_groups(groups, method, evidence)
    measure = _Measure(model, loss, metric, [*evaluation.batches(data, batch_size, batches)])
    whole = measure({})
    found = {}
    for group in groups:
        found[group.name] = _curve(measure, group, scores[group.name], shares)
    (name,) = SCORES.describe(method)
    metrics = {key: tuple(pair[1] for pair in pairs) for key, pairs in found.items()}
    return Sensitivity(
        score=name,
        groups=tuple(group.name for group in groups),
        sizes=tuple(group.size for group in groups),
        sparsities=shares,
        loss=whole[0],
        losses={key: tuple(pair[0] for pair in pairs) for key, pairs in found.items()},
        metric_name=measure.metric_name,
        metric=None if metric is None else whole[1],
        metrics=None if metric is None else metrics,
    )


def _curve(
    measure: "_Measure", group: Group, scores: np.ndarray, shares: Sequence[float]
) -> list[tuple[float, float]]:
    """Returns what is measured at each share; shares that mean equal numbers, only once."""
    counts = [selection.count_of(share, group.size) for share in shares]
    measured = {count: measure(_silenced(group, scores, count)) for count in sorted(set(counts))}
    return [measured[count] for count in counts]


def _silenced(group: Group, scores: np.ndarray, count: int) -> dict[int, np.ndarray]:
    """Returns the weights with which the lowest channels are silent, by `id` of their variable."""
    silent = selection.lowest(scores, count)
    read = any(member.role == "in" for member in group.members)
    replaced: dict[int, np.ndarray] = {}
    for member in group.members:
        if member.role == ("in" if read else "out"):
            w = replaced.setdefault(id(member.variable), slices.value(member).copy())
            np.moveaxis(w, member.axis, 0)[member.indices[silent[member.channels]]] = 0
    return replaced


class _Metric:
    """One of Keras' metrics, read from a model of its own, so that the user's stays as it was."""

    def __init__(self, model: keras.Model, metric: Any):
        self._judge = keras.Model(name="judge")
        self._judge.output_names = list(model.output_names)
        call(lambda: self._judge.compile(metrics=[metric]), "compile with `metric`")

    def reset(self) -> None:
        self._judge.reset_metrics()

    def see(self, y: Any, outputs: Any) -> None:
        call(lambda: self._judge.compute_metrics(None, y, outputs), "The metric")

    def result(self) -> tuple[str, float]:
        """Returns name and value; of several outputs' the first one's."""
        results = self._judge.get_metrics_result()
        return next((name, float(value)) for name, value in results.items() if name != "loss")


class _Measure:
    """Loss and metric over fixed batches, with some weights replaced."""

    def __init__(self, model: keras.Model, loss: Any, metric: Any, data: list[evaluation.Batch]):
        self._evaluate = evaluation.Evaluation(model, loss)
        self._data = data
        self._metric = None if metric is None else _Metric(model, metric)
        self.metric_name: str | None = None

    def __call__(self, replaced: dict[int, np.ndarray]) -> tuple[float, float]:
        """Returns (loss, metric); the metric is NaN where none was asked for."""
        if self._metric is None:
            return self._evaluate(self._data, replaced), float("nan")
        self._metric.reset()
        loss = self._evaluate(self._data, replaced, self._metric.see)
        self.metric_name, value = self._metric.result()
        return loss, value
