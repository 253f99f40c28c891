"""Channel pruning in one shot: score, rank, and remove until a budget is met."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import keras
import numpy as np

from tfcompress.errors import InputError, require, unknown
from tfcompress.structured import costs
from tfcompress.structured.evidence import collect
from tfcompress.structured.groups import NONE_MADE, ChannelGroups, channel_groups
from tfcompress.structured.latency import latency_table, prune_to_latency
from tfcompress.structured.measured import loss_without, rank_measured
from tfcompress.structured.per_cost import COSTS, cost_of, rank_per_cost
from tfcompress.structured.ranking import SCOPES as RANKED
from tfcompress.structured.ranking import rank, score_groups
from tfcompress.structured.removal import keep_channels
from tfcompress.structured.scores import SCORES
from tfcompress.structured.selection import Selection, limits, out_of_reach
from tfcompress.tflite import convert

_MOST_FILES = 6  # that are written to find out how far a budget of bytes goes
SCOPES = (*RANKED, "measured")
_COUNTED = {"keep_macs": costs.macs, "keep_parameters": costs.parameters}


def prune_channels(
    model: keras.Model,
    *,
    keep_macs: float | None = None,
    keep_parameters: float | None = None,
    keep_bytes: float | None = None,
    keep_latency: float | None = None,
    score: Any = "magnitude",
    data: Any = None,
    loss: Any = None,
    scope: str = "global",
    per: str | None = None,
    round_to: int = 1,
    rules: Sequence[Mapping[str, Any]] = (),
    optimizer: bool = False,
    scheme: str = "float32",
    samples: Any = None,
) -> keras.Model:
    """Returns a smaller model without its least important channels; `model` stays as it is.

    All weights of a channel go, in every layer that it touches (`channel_groups`), until the model
    costs at most the given share of what it cost; a group keeps one channel at least. The new model
    is plain Keras and loses accuracy: fine-tune it.

    Args:
        keep_macs, keep_parameters, keep_bytes, keep_latency: the budget, just one of them, a share
            in (0, 1) of the model's multiply-accumulates, of its weights, of the bytes of its
            `.tflite` file, or of that file's time in the interpreter. The last two are measured
            with files of `scheme`: several models are built and converted.
        score: which channels go first, see `tfcompress.structured.SCORES`.
        data: for scores that need it, (x, y) arrays, a `tf.data.Dataset` or `tfcompress.data.Data`;
            about 1,000 samples are read.
        loss: for scores that need gradients, and to measure; None: the one that the model is
            compiled with.
        scope: `global` compares the channels of all groups; `layer` takes the same share of each;
            `measured` needs data, and takes, step by step, from the group whose channels the loss
            can best do without: each step saves 5 % of the budget's cost, and tries every group.
        per: a cost that scores are weighed against: `macs`, `parameters` or `latency`. Those
            channels go first whose score / (cost that they save) is least, at the widths that the
            groups have by then; several at once where `round_to` asks for it. Scores that add up,
            those of `{"gradient": {"normalise": False}}`, make this the greedy answer to a
            knapsack problem; with others it is a rule of thumb that may empty costly groups, which
            `keep_at_least` can prevent. `latency` is measured at four widths in files of `scheme`,
            and goes with any budget. For `scope="global"`.
        round_to: groups keep a multiple of so many channels (8 suits most hardware), except those
            that are narrower.
        rules: what differs for some layers, e.g. `{"layers": "stem", "skip": "sees the image"}` or
            `{"layers": "block1/.*", "keep_at_least": 0.5}`. Keys: `layers`, `skip`,
            `keep_at_least` (share of the channels that stay), `round_to`.
        optimizer: see `keep_channels`.
        scheme, samples: how the files for `keep_bytes` and `keep_latency` are made, see
            `tfcompress.convert`.

    Raises:
        InputError: for a budget that cannot be met (with the smallest that can), a model without
            free channels, a rule that matches nothing, weights or scores that are NaN, data that
            does not fit.

    Sources: Li et al. 2017, "Pruning filters for efficient ConvNets"; Fang et al. 2023, "DepGraph";
    for `measured` Yang et al. 2018, "NetAdapt", without its fine-tuning between the steps.

    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="conv"),
    ...     keras.layers.Flatten(), keras.layers.Dense(2)])
    >>> prune_channels(model, keep_macs=0.5).get_layer("conv").filters
    4
    """
    budgets = {
        "keep_macs": keep_macs,
        "keep_parameters": keep_parameters,
        "keep_bytes": keep_bytes,
        "keep_latency": keep_latency,
    }
    budget, share = _one_budget(budgets)
    _check_scope(scope, per, data)
    method = SCORES.create(score)
    groups = channel_groups(model)
    require_free(groups)
    limited = limits(groups, rules, round_to)
    # What a rule spares needs no score, and may have none.
    scored = [group for group in groups if limited[group.name].least < group.size]
    evidence = collect(model, groups, data, loss, method.needs)
    scores = score_groups(scored, method, evidence)
    counted = {"keep_bytes": "parameters"}.get(budget, budget.removeprefix("keep_"))
    table = latency_table(groups, scheme, samples) if "latency" in (per, counted) else None
    how = {"normalise": method.normalise}
    if scope == "measured":
        cost, measure = cost_of(counted, groups, scored, table), loss_without(groups, data, loss)
        ranking = rank_measured(scored, scores, cost, limited, measure, share, **how)
    elif per is not None:
        cost = cost_of(per, groups, scored, table)
        ranking = rank_per_cost(scored, scores, cost, limited, **how)
    else:
        ranking = rank(scored, scores, scope, **how)
    selection = Selection(groups, ranking, limited)
    if budget == "keep_latency":
        return prune_to_latency(
            groups, selection, share, scheme, samples, optimizer=optimizer, table=table
        )
    if budget == "keep_bytes":
        kept = _within_bytes(groups, selection, share, scheme, samples)
    else:
        kept = _counted(groups, selection, budget, share)
    return keep_channels(groups, kept, optimizer)


def _one_budget(budgets: Mapping[str, float | None]) -> tuple[str, float]:
    given = [(name, share) for name, share in budgets.items() if share is not None]
    if len(given) != 1:
        raise InputError(
            f"prune_channels needs just one budget of {', '.join(budgets)}. "
            f"Received: {', '.join(f'{name}={share!r}' for name, share in given) or 'none'}"
        )
    ((name, share),) = given
    inside = isinstance(share, Real) and 0 < share < 1
    require(inside, f"{name} of prune_channels", "must be a share in (0, 1)", **{name: share})
    return name, float(share)


def _check_scope(scope: str, per: str | None, data: Any) -> None:
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    measurable = scope != "measured" or data is not None
    require(measurable, "data", "must be given for scope='measured'", data=data)
    if per is not None and per not in COSTS:
        raise unknown("per", per, COSTS)
    if per is not None and scope != "global":
        raise InputError(
            "per of prune_channels compares groups, and must go with scope='global'. "
            f"Received: per={per!r}, scope={scope!r}"
        )


def require_free(groups: ChannelGroups) -> None:
    """Raises `InputError` for a model of which no channel can go."""
    if not len(groups):
        pinned = "; ".join(f"{path}: {reason}" for path, reason in list(groups.pinned.items())[:3])
        raise InputError(
            f"Model '{groups.model.name}' must have channels that can go. Pinned are "
            + (pinned or f"all: {NONE_MADE}")
        )


def _counted(
    groups: ChannelGroups, selection: Selection, budget: str, share: float
) -> dict[str, np.ndarray]:
    """Returns the channels that stay within a budget that is counted without building models."""
    cost = _COUNTED[budget]
    whole = cost(groups, groups.stays({}))

    def relative(stays: np.ndarray) -> float:
        return cost(groups, stays) / whole

    removed = selection.within(relative, share)
    if removed is None:
        smallest = relative(groups.stays(selection.kept(len(selection))))
        raise out_of_reach(groups, budget, share, smallest)
    return selection.kept(removed)


def _within_bytes(
    groups: ChannelGroups, selection: Selection, share: float, scheme: str, samples: Any
) -> dict[str, np.ndarray]:
    """Returns the channels of the largest model found whose file has at most that share of bytes.

    A file's bytes are a straight line over the weights, nearly: the last two files tell where it
    meets the budget, until that changes nothing.
    """

    def weights(stays: np.ndarray) -> int:
        return costs.parameters(groups, stays)

    def measure(kept: Mapping[str, np.ndarray]) -> tuple[int, int]:
        file = convert(keep_channels(groups, kept), scheme, samples)
        return weights(groups.stays(kept)), len(file)

    largest = above = measure({})
    fits, best, least = (0, 0), len(selection), 0
    most = share * largest[1]
    for _ in range(_MOST_FILES):
        slope = (above[0] - fits[0]) / max(above[1] - fits[1], 1)
        removed = selection.within(weights, fits[0] + slope * (most - fits[1]))
        removed = max(least, best if removed is None else removed)
        if removed >= best and fits != (0, 0):
            break
        found = measure(selection.kept(removed))
        if found[1] <= most:
            fits, best = found, removed
        elif removed == len(selection):
            raise out_of_reach(groups, "keep_bytes", share, found[1] / largest[1])
        else:
            above, least = found, removed + 1
    return selection.kept(best)
