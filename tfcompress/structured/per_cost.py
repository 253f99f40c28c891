"""Scores of channels weighed by what their removal saves: the order of a greedy knapsack."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfcompress.structured import costs
from tfcompress.structured.groups import ChannelGroups, Group
from tfcompress.structured.latency import LatencyTable
from tfcompress.structured.ranking import Ranking, Shrinking
from tfcompress.structured.selection import Limit

Cost = Callable[[np.ndarray], np.ndarray]  # widths (..., groups) -> what the model costs (...)

_NOTHING = 1e-150  # what counts as saved where time stays the same: such channels go last
COSTS = ("macs", "parameters", "latency")
_PRODUCTS = {"macs": costs.macs_products, "parameters": costs.parameters_products}


def cost_of(
    per: str, groups: ChannelGroups, scored: Sequence[Group], table: LatencyTable | None = None
) -> Cost:
    """Returns what a model costs at widths of the `scored` groups; "latency" needs the table."""
    if table is None:
        counts = costs.by_width(groups, scored, _PRODUCTS[per](groups))
        return lambda widths: counts(widths).sum(-1)
    counts = costs.by_width(groups, scored, costs.macs_products(groups))
    kernels = len(groups.trace.kernels)

    def ms(widths: np.ndarray) -> np.ndarray:
        work = counts(widths)
        return table.ms(work[..., :kernels], work.sum(-1))

    return ms


def rank_per_cost(
    groups: Sequence[Group],
    scores: Mapping[str, np.ndarray],
    cost: Cost,
    limits: Mapping[str, Limit],
    *,
    normalise: bool = True,
) -> Ranking:
    """Returns the channels in the order in which a greedy choice removes them.

    Of each group the lowest channels are up next, as many as lead to the next width w' that its
    limit allows. The group with the least

        sum of their scores / (cost(w) - cost(w'))

    loses them, w being the widths of all groups at that moment; and so on until no limit allows
    more. The channels that limits hold come last. Where the scores add up, as the changes of a loss
    do, it is the greedy answer to the knapsack problem of removing cost for the least score.

    Args:
        scores, normalise: see `rank`.
        cost: of `cost_of`, over the widths of `groups`.
        limits: by name of the group.
    """
    shrinking = Shrinking(groups, scores, normalise)
    widths = shrinking.widths
    steps, losses = np.zeros(len(groups), int), np.full(len(groups), np.inf)

    def look_ahead(number: int) -> None:
        below = limits[groups[number].name].below(int(widths[number]))
        steps[number] = 0 if below is None else widths[number] - below
        losses[number] = np.inf if below is None else shrinking.loss(number, below)

    for number in range(len(groups)):
        look_ahead(number)
    while steps.any():
        saved = cost(widths) - cost(widths - np.diag(steps))
        ratios = losses / np.maximum(saved, _NOTHING)
        number = int(np.argmin(ratios))
        shrinking.shrink(number, int(widths[number] - steps[number]), float(ratios[number]))
        look_ahead(number)
    return shrinking.ranking()
