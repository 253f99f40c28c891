"""Codebooks whose weights change places: against values computed by hand and by brute force."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcompress import clustered, lookup
from tfcompress.latent import Latent


def stepped(form, w):
    """Returns what `form` makes of a kernel after a step, as a projection has it."""
    found, kept = form.step(tf.constant(w, tf.float32))
    form.remember(kept)
    return found.numpy()


def of_scalars(w, places, columns, gradients="mean"):
    form = Latent((len(w),), np.arange(len(w)).reshape(1, -1, 1), columns, gradients)
    form.set(np.array([places], np.int32), np.array(w, np.float32))
    return form


@pytest.mark.parametrize(
    ("gradients", "expected"),
    # The mean moves the first entry to 0.875, from which 1.75 is farther than from 2.5. Over the
    # root of 2 it goes 0.75 / 1.414 = 0.53 far: as far as one step of its two weights' 0 and 0.75.
    [
        ("mean", [0.875, 2.5, 2.5, 2.5]),
        ("sum", [1.25, 1.25, 2.5, 2.5]),
        ("root", [1.030330, 1.030330, 2.5, 2.5]),
    ],
)
def test_a_step_moves_latent_values_and_entries_and_then_weights_change_places(gradients, expected):
    # Entries 0.5 and 2.5; the second weight's step takes its latent value from 1.0 to 1.75.
    form = of_scalars([0.0, 1.0, 2.0, 3.0], [1, 1, 2, 2], 2, gradients)
    np.testing.assert_allclose(stepped(form, [0.5, 1.25, 2.5, 2.5]), expected)
    np.testing.assert_allclose(form.latent, [0.0, 1.75, 2.0, 3.0])


def test_a_weight_goes_where_it_is_nearest():
    form = of_scalars([0.0, 1.0, 2.0, 3.0], [1, 1, 2, 2], 2)
    found = stepped(form, [0.5, 1.5, 2.5, 2.5])  # entries 1.0 and 2.5, latent 0, 2, 2, 3
    np.testing.assert_allclose(found, [1.0, 2.5, 2.5, 2.5])
    assert form.places[0].tolist() == [1, 2, 2, 2]
    # Nothing moves without a step, and the weight may come back.
    np.testing.assert_array_equal(stepped(form, found), found)
    back = stepped(form, found + np.array([0, -0.75, 0, 0], np.float32))
    assert form.places[0].tolist() == [1, 1, 2, 2]
    np.testing.assert_allclose(back, [1.0, 1.0, 2.25, 2.25])


def test_zero_stays_zero_and_an_entry_that_never_had_weights_is_out_of_use():
    form = of_scalars([0.0, 1.0, 3.0], [0, 1, 2], 3)
    found = stepped(form, [5.0, -1.0, 3.0])  # what zero is told counts for nothing
    np.testing.assert_allclose(found, [0.0, -1.0, 3.0])
    assert form.kept[0].numpy()[3] == np.inf


def test_an_entry_that_lost_its_weights_keeps_its_value_and_may_win_others():
    form = of_scalars([0.0, 4.0, 0.1, 3.9], [1, 1, 2, 3], 3)
    found = stepped(form, [2.0, 2.0, 0.1, 3.9])
    np.testing.assert_allclose(found, [0.1, 3.9, 0.1, 3.9])
    np.testing.assert_allclose(form.kept[0], [0.0, 0.1, 2.0, 3.9])
    # The entry 0.1 goes to 1.0, from which 1.9 is farther than from the empty one's 2.0.
    np.testing.assert_allclose(stepped(form, found + [0, 0, 1.8, 0]), [1.0, 3.9, 2.0, 3.9])


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(7, 5), (2, 2, 3, 4)]),
    block=st.sampled_from([(1, 1), (2, 1), (3, 2)]),
    per=st.sampled_from(["kernel", "channel"]),
    seed=st.integers(0, 1000),
)
def test_each_block_takes_the_nearest_entry(shape, block, per, seed):
    block = (block[0], 1) if per == "channel" else block
    rng = np.random.default_rng(seed)
    plan = clustered.Plan("test", {"kmeans": {"clusters": 3}}, block=block, per=per)
    w = rng.normal(size=shape).astype(np.float32)
    w[rng.random(shape) < 0.2] = 0.0
    found = clustered.cluster_kernel(w, plan, (-1,))
    layout = clustered.layout(shape, plan, (-1,))
    assert sorted(layout[layout >= 0]) == list(range(w.size))
    form = Latent(shape, layout, 3, "mean")
    form.set(found.places, w)
    np.testing.assert_array_equal(form.nearest(tf.constant(found.values))[0], found.values)
    moved = stepped(form, found.values + rng.normal(size=shape).astype(np.float32) / 2)
    assert not moved[w == 0].any()
    books, _, width = layout.shape
    entries = form.kept[0].numpy()[1:].reshape(books, width, 3)
    hidden = form.latent
    for book, numbers in itertools.chain.from_iterable(
        ((book, numbers) for numbers in layout[book]) for book in range(books)
    ):
        real = numbers >= 0
        used = real & (w.ravel()[np.maximum(numbers, 0)] != 0)
        if not used.any():
            continue
        errors = (hidden.ravel()[numbers[used], None] - entries[book, used]) ** 2
        taken = ((hidden - moved).ravel()[numbers[used]] ** 2).sum()
        assert taken == pytest.approx(errors.sum(axis=0).min(), abs=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"per": "channel"}, {"block": (2, 1)}, {"block": (3, 2)}], ids=str
)
@pytest.mark.parametrize("gradients", ["mean", "root"])
def test_a_large_kernel_s_compiled_step_is_that_of_a_small_one(options, gradients, monkeypatch):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(20, 9)).astype(np.float32)
    w[rng.random(w.shape) < 0.2] = 0.0
    plan = clustered.Plan("test", {"kmeans": {"clusters": 5}}, **options)
    found = clustered.cluster_kernel(w, plan, (-1,))
    steps = rng.normal(size=(3, *w.shape)).astype(np.float32) / 4
    results = []
    for least in (10_000, 0):
        monkeypatch.setattr(lookup, "_LARGE", least)
        form = Latent(w.shape, clustered.layout(w.shape, plan, (-1,)), 5, gradients)
        form.set(found.places, w)
        in_graph = tf.function(form.step)
        moved = found.values
        for step in steps:
            moved, kept = in_graph(tf.constant(moved + step))
            form.remember(kept)
            moved = moved.numpy()
        results.append((moved, form.places, form.latent))
    for plain, compiled in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, compiled)


def test_values_tell_the_places():
    w = np.array([[0.0, 1.0], [2.0, 1.0], [2.0, 5.0]], np.float32)
    plan = clustered.Plan("test", {"kmeans": {"clusters": 2}}, per="channel")
    form = Latent(w.shape, clustered.layout(w.shape, plan, (-1,)), 2, "mean")
    assert form.find(w)[0].tolist() == [[0, 3], [1, 3], [1, 4]]
    assert form.find(np.arange(6.0).reshape(3, 2)) is None
