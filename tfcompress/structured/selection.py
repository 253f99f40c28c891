"""How many channels of each group stay: limits, rounding, and a budget to be met."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from tfcompress import rules as ruling
from tfcompress.errors import InputError, require
from tfcompress.structured.groups import ChannelGroups, Group
from tfcompress.structured.ranking import Ranking

RULE_KEYS = ("keep_at_least", "round_to")


@dataclasses.dataclass(frozen=True)
class Limit:
    """A group keeps at least so many channels, and a multiple of `round_to` of them."""

    least: int = 1
    round_to: int = 1

    def allowed(self, wanted: int, size: int) -> int:
        """Returns the nearest number of channels from `wanted` on that the limit allows."""
        count = max(wanted, self.least)
        return min(size, math.ceil(count / self.round_to) * self.round_to)

    def below(self, width: int) -> int | None:
        """Returns the next smaller number of channels that the limit allows, if there is one."""
        smaller = (math.ceil(width / self.round_to) - 1) * self.round_to
        return smaller if smaller >= max(self.least, 1) else None


def limits(
    groups: ChannelGroups, rules: Sequence[Mapping[str, Any]], round_to: int = 1
) -> dict[str, Limit]:
    """Returns the limit of each group; rules speak about the layers that make its channels.

    A group keeps all its channels if one of these layers is skipped, else as many as the strictest
    of its rules asks for. Raises `InputError` for values out of range and rules without a match.
    """
    _check_width("round_to", round_to)
    makers = {
        (use.path, use.variable.name): ruling.Place(f"{use.path}/{use.variable.name}", use.path)
        for use in groups.trace.uses.values()
        if use.role == "out"
    }
    chosen = ruling.resolve(rules, makers.values(), RULE_KEYS)
    found = {}
    for group in groups:
        made = [
            chosen[makers[m.layer_path, m.variable.name].path]
            for m in group.members
            if m.role == "out"
        ]
        found[group.name] = _limit(group, made, round_to)
    return found


def _limit(group: Group, made: Sequence[Mapping[str, Any]], round_to: int) -> Limit:
    if any("skip" in rule for rule in made):
        return Limit(least=group.size)
    least = 1
    for rule in made:
        share = rule.get("keep_at_least", 0.0)
        inside = isinstance(share, Real) and 0 <= float(share) <= 1
        require(inside, "keep_at_least of a rule", "must be in [0, 1]", keep_at_least=share)
        _check_width("round_to of a rule", rule.get("round_to", 1))
        least = max(least, math.ceil(share * group.size - 1e-9))
    return Limit(least, max([rule.get("round_to", round_to) for rule in made], default=round_to))


def _check_width(owner: str, value: Any) -> None:
    whole = isinstance(value, Integral) and int(value) >= 1
    require(whole, owner, "must be a whole number of at least 1", round_to=value)


class Selection:
    """The channels that stay when more and more of a ranking go, within the limits."""

    def __init__(self, groups: ChannelGroups, ranking: Ranking, limits: Mapping[str, Limit]):
        self._groups = groups
        self._ranking = ranking
        self._limits = limits
        self._order = {
            name: ranking.channels[ranking.groups == number]
            for number, name in enumerate(ranking.names)
        }

    def __len__(self) -> int:
        return len(self._ranking)

    def kept(self, removed: int) -> dict[str, np.ndarray]:
        """Returns by group the channels that stay when the first `removed` would go, ascending."""
        counts = np.bincount(
            self._ranking.groups[removed:], minlength=len(self._ranking.names)
        ).tolist()
        kept = {}
        for (name, order), count in zip(self._order.items(), counts, strict=True):
            stay = self._limits[name].allowed(count, order.size)
            kept[name] = np.sort(order[order.size - stay :])
        return kept

    def within(self, cost: Callable[[np.ndarray], float], most: float) -> int | None:
        """Returns the smallest number to remove with a cost of at most `most`; None if all is more.

        `cost` takes which labels stay, see `ChannelGroups.stays`.
        """

        def fits(removed: int) -> bool:
            return cost(self._groups.stays(self.kept(removed))) <= most

        low, high = 0, len(self)
        if not fits(high):
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle + 1, high)
        return low


def out_of_reach(groups: ChannelGroups, budget: str, wanted: float, smallest: float) -> InputError:
    """Returns the error for a budget that cannot be met, with what can, and what stands against."""
    pinned = [f"{path} ({reason})" for path, reason in groups.pinned.items()]
    shown = "; ".join(pinned[:3]) + (f"; and {len(pinned) - 3} more" if len(pinned) > 3 else "")
    # Rounded up: the number that the message names can be reached.
    reachable = math.ceil(smallest * 1e4) / 1e4
    return InputError(
        f"{budget} must be at least {reachable:.4f}, the smallest that can be reached: rules and "
        f"round_to limit every group, and pinned are {shown}. Received: {budget}={wanted:g}"
    )
