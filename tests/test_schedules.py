import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcompress import schedules
from tfcompress.errors import InputError
from tfcompress.schedules import SCHEDULES, Cascade, Constant, Cosine, Exponential, OneShot
from tfcompress.schedules import Polynomial as Poly

RAMPS = ["polynomial", "exponential", "cosine", "cascade"]


def test_names():
    assert SCHEDULES.names() == (
        "cascade",
        "constant",
        "cosine",
        "exponential",
        "one_shot",
        "polynomial",
    )


@pytest.mark.parametrize("name", SCHEDULES.names())
@given(end=st.floats(0, 0.999), begin=st.integers(0, 50), length=st.integers(0, 200))
def test_every_schedule_rises_from_0_to_end(name, end, begin, length):
    arguments = {"end": end, "begin_step": begin}
    if name != "one_shot":
        arguments["end_step"] = begin + length
    schedule = SCHEDULES.create({name: arguments})
    values = [schedule(step) for step in range(begin + length + 10)]
    assert values[:begin] == [0.0] * begin
    assert all(0 <= value < 1 for value in values)
    assert all(later >= earlier - 1e-12 for earlier, later in zip(values, values[1:], strict=False))
    assert values[schedule.end_step :] == [end] * (len(values) - schedule.end_step)
    assert SCHEDULES.create(SCHEDULES.describe(schedule)) == schedule


@pytest.mark.parametrize("name", ["polynomial", "exponential", "cosine"])
def test_ramps_begin_at_start(name):
    schedule = SCHEDULES.create(
        {name: {"end": 0.9, "start": 0.5, "begin_step": 10, "end_step": 20}}
    )
    assert schedule(9) == 0 and schedule(10) == pytest.approx(0.5) and 0.5 < schedule(11) < 0.9


def test_formulas():
    t = 0.3
    assert Poly(end=0.8, start=0.2, end_step=10)(3) == pytest.approx(0.8 - 0.6 * (1 - t) ** 3)
    assert Poly(end=0.8, end_step=10, power=1)(3) == pytest.approx(0.8 * t)
    assert Cosine(end=0.8, end_step=10)(3) == pytest.approx(0.4 * (1 - math.cos(math.pi * t)))
    assert Exponential(end=0.75, end_step=10)(3) == pytest.approx(1 - 0.25**t)
    assert Constant(end=0.5)(10**6) == OneShot(end=0.5, begin_step=10**6)(10**6) == 0.5


def test_every_cascade_round_removes_the_same_share_of_what_is_left():
    cascade = Cascade(end=0.875, begin_step=10, end_step=40, rounds=3)
    assert [cascade(s) for s in (9, 10, 19, 20, 29, 30, 40)] == pytest.approx(
        [0, 0.5, 0.5, 0.75, 0.75, 0.875, 0.875]
    )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("polynomial", {"end": 1.0}, r"end of Polynomial must be in \[0, 1\)\. Received: end=1.0"),
        ("constant", {"end": -0.1}, "end of Constant"),
        ("cosine", {"end": float("nan")}, "end of Cosine"),
        ("one_shot", {"end": "0.5"}, "end of OneShot"),
        ("polynomial", {"end": 0.5, "power": 0}, "power of Polynomial"),
        ("polynomial", {"end": 0.5, "start": 0.6}, "start of Polynomial must be at most end"),
        ("cascade", {"end": 0.5, "rounds": 0}, "rounds of Cascade"),
        ("cosine", {"end": 0.5, "begin_step": -1}, "begin_step of Cosine"),
        ("cosine", {"end": 0.5, "begin_step": 5, "end_step": 4}, "end_step of Cosine"),
        ("cosine", {"end": 0.5, "end_step": 4.5}, "end_step of Cosine"),
        ("cosine", {}, "needs end"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(InputError, match=message):
        SCHEDULES.create({name: arguments})


def test_resolve_fills_in_three_quarters_of_the_steps():
    assert schedules.resolve({"cosine": {"end": 0.5}}, 1001).end_step == 750
    given_one = Poly(end=0.5, end_step=7)
    assert schedules.resolve(given_one, None) is given_one
    assert schedules.resolve(OneShot(end=0.5, begin_step=9), None).end_step == 9
    open_one = Poly(end=0.5)
    assert schedules.resolve(open_one, 40)(30) == 0.5 and open_one.end_step is None


def test_an_open_end_step_is_an_error_where_it_is_needed():
    with pytest.raises(InputError, match="number of training steps is unknown"):
        schedules.resolve(Poly(end=0.5), None)
    with pytest.raises(InputError, match="must be given, or filled in"):
        Poly(end=0.5)(3)
    with pytest.raises(InputError, match="must not come before begin_step"):
        schedules.resolve(Poly(end=0.5, begin_step=80), 100)
