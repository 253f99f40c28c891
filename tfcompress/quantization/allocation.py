"""Which scheme each layer gets, under a limit: an integer program over measured numbers."""

from typing import Any

import numpy as np
from scipy import optimize, sparse

from tfcompress.errors import InputError, require

_OWNER = "allocation"


def allocate(sensitivities: Any, costs: Any, limit: Any) -> np.ndarray:
    """Returns the scheme of each layer: the least total sensitivity whose costs stay in the limit.

        minimize   sum_l sensitivities[l, choice[l]]
        such that  sum_l costs[l, choice[l]] <= limit

    The optimum, to solver precision; the limit holds exactly. Sensitivities are taken to add up
    over layers, as to first order they do. The other question, the least cost whose sensitivity
    stays in a limit, is the same with the first two arguments exchanged.

    Args:
        sensitivities: (layers, schemes), what each scheme does to the loss in each layer; may be
            negative. Infinite: the layer cannot have the scheme.
        costs: (layers, schemes), for example bytes or milliseconds, at least 0; or (limits, layers,
            schemes), for several limits at once. Infinite: as above.
        limit: a number, or one for each of the costs.

    Returns:
        int64 (layers,): the index of each layer's scheme.

    Raises:
        InputError: shapes that do not fit, NaN, or a limit that no choice keeps: the least that one
            does is named.

    Source: Hubara et al. 2021, "Accurate post training quantization with small calibration sets",
    section 3.3.

    >>> allocate([[0.0, 3.0], [0.0, 1.0]], [[8, 4], [8, 4]], 12).tolist()
    [0, 1]
    """
    loss, cost, limits = _checked(sensitivities, costs, limit)
    layers, schemes = loss.shape
    allowed = np.isfinite(loss) & np.isfinite(cost).all(axis=0)
    blocked = np.flatnonzero(~allowed.any(axis=1))
    require(not blocked.size, _OWNER, "needs a scheme for every layer", layers=blocked.tolist())
    loss, cost = np.where(allowed, loss, 0.0), np.where(allowed, cost, 0.0)
    one_each = sparse.kron(sparse.eye(layers), np.ones((1, schemes)), format="csr")
    scale = max(float(np.abs(loss).max()), 1e-300)
    bounds = optimize.Bounds(0, allowed.ravel().astype(float))
    tried = limits.copy()
    for _ in range(8):
        found = optimize.milp(
            loss.ravel() / scale,
            integrality=np.ones(loss.size),
            bounds=bounds,
            constraints=[
                optimize.LinearConstraint(one_each, 1, 1),
                optimize.LinearConstraint(cost.reshape(len(cost), -1), -np.inf, tried),
            ],
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            break
        choice = found.x.reshape(loss.shape).argmax(axis=1)
        excess = total(cost, choice) - limits
        if (excess <= 0).all():
            return choice
        # The solver keeps a limit to its own tolerance only: it is asked for a little less.
        tried -= np.where(excess > 0, 2 * excess, 0)
    raise _unreachable(cost, allowed, limits)


def total(numbers: Any, choice: np.ndarray) -> Any:
    """Returns the sum of what the choice costs: of (layers, schemes) a number, of (k, layers,
    schemes) an array (k,).

    >>> float(total([[8, 4], [8, 4]], np.array([0, 1])))
    12.0
    """
    numbers = np.asarray(numbers, np.float64)
    return numbers[..., np.arange(len(choice)), choice].sum(axis=-1)


def front(sensitivities: Any, costs: Any, points: int = 16) -> list[np.ndarray]:
    """Returns choices from the cheapest to the least sensitive one, each the best at its cost.

    `costs`: (layers, schemes). The limits are `points` evenly spaced ones, at least 2; choices that
    another beats in both cost and sensitivity, and repetitions, are left out.

    >>> [choice.tolist() for choice in front([[0.0, 3.0], [0.0, 1.0]], [[8, 4], [8, 4]], 3)]
    [[1, 1], [0, 1], [0, 0]]
    """
    require(points >= 2, "points of the front", "must be at least 2", points=points)
    loss, cost, _ = _checked(sensitivities, costs, np.inf)
    allowed = np.isfinite(loss) & np.isfinite(cost[0])
    least = np.where(allowed, cost[0], np.inf).min(axis=1).sum()
    most = np.where(allowed, cost[0], -np.inf).max(axis=1).sum()
    found: list[np.ndarray] = []
    best = np.inf
    for limit in np.linspace(least, most, points):
        choice = allocate(loss, cost[0], max(limit, least))
        value = total(np.where(allowed, loss, 0.0), choice)
        if value < best:
            found.append(choice)
            best = value
    return found


def _checked(sensitivities: Any, costs: Any, limit: Any) -> tuple[np.ndarray, ...]:
    loss = np.asarray(sensitivities, np.float64)
    cost = np.asarray(costs, np.float64)
    rule = "must be an array (layers, schemes) without NaN"
    require(
        loss.ndim == 2 and loss.size and not np.isnan(loss).any() and not np.isneginf(loss).any(),
        "sensitivities of allocation",
        rule,
        shape=loss.shape,
    )
    cost = cost[np.newaxis] if cost.ndim == 2 else cost
    rule = f"must be numbers of at least 0, of shape {loss.shape} or with one axis more in front"
    fits = cost.ndim == 3 and cost.shape[1:] == loss.shape and (cost >= 0).all()
    require(fits, "costs of allocation", rule, shape=cost.shape)
    limits = np.atleast_1d(np.asarray(limit, np.float64))
    require(
        limits.shape == (len(cost),) and not np.isnan(limits).any(),
        "limit of allocation",
        f"must be {len(cost)} number(s), one for each of the costs",
        limit=limit,
    )
    return loss, cost, limits


def _unreachable(cost: np.ndarray, allowed: np.ndarray, limits: np.ndarray) -> InputError:
    least = np.where(allowed, cost, np.inf).min(axis=2).sum(axis=1)
    given = ", ".join(f"{limit:g}" for limit in limits)
    if (least > limits).any():
        parts = ", ".join(f"{number:g}" for number in least)
        return InputError(f"limit of {_OWNER} must be at least {parts}. Received: limit={given}")
    return InputError(f"limits of {_OWNER} cannot be kept at once. Received: limit={given}")
