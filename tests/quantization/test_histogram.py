"""Histograms that grow without losing a count."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfcompress.quantization.histogram import Histogram

ROWS = st.tuples(st.integers(1, 3), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32))
)


def fields(histogram):
    return [getattr(histogram, name) for name in vars(histogram)]


@given(rows=ROWS, data=st.data())
def test_it_does_not_depend_on_the_batches(rows, data):
    cut = data.draw(st.integers(1, rows.shape[1]))
    batches = Histogram.empty(len(rows), 16).add(rows[:, :cut])
    before = [field.copy() for field in fields(batches)]
    if cut < rows.shape[1]:
        at_once = Histogram.empty(len(rows), 16).add(rows)
        grown = batches.add(rows[:, cut:])
        for one, other in zip(fields(grown), fields(at_once), strict=True):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(fields(batches), before, strict=True):
        np.testing.assert_array_equal(one, other)


@given(rows=ROWS)
def test_every_value_is_in_its_bin(rows):
    histogram = Histogram.empty(len(rows), 16).add(rows)
    edges = histogram.edges()
    assert histogram.counts.shape == (len(rows), 16)
    for row, borders, counts, zeros in zip(
        rows.astype(np.float64), edges, histogram.counts, histogram.zeros, strict=True
    ):
        values = row[row != 0]
        expected = [
            ((low <= values) & (values < high)).sum()
            for low, high in zip(borders[:-1], borders[1:], strict=True)
        ]
        np.testing.assert_array_equal(counts, expected)
        assert zeros == (row == 0).sum() and counts.sum() + zeros == row.size


@given(rows=ROWS, data=st.data())
def test_only_marked_values_count(rows, data):
    where = data.draw(arrays(bool, rows.shape))
    marked = Histogram.empty(len(rows), 16).add(rows, where)
    for group, (row, mask) in enumerate(zip(rows, where, strict=True)):
        values = row[mask][None] if mask.any() else np.zeros((1, 0), np.float32)
        alone = Histogram.empty(1, 16).add(values)
        for one, other in zip(fields(marked), fields(alone), strict=True):
            np.testing.assert_array_equal(one[group], other[0])


def test_bins_are_as_narrow_as_fits():
    histogram = Histogram.empty(1, 16).add(np.array([[0.0, 15.99]]))
    assert histogram.exponent[0] == 0 and histogram.first[0] == 0
    assert histogram.add(np.array([[16.0]])).exponent[0] == 1
    assert histogram.add(np.array([[-0.1]])).exponent[0] == 1


def test_many_values_are_counted_in_parts(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(3, 1000))
    whole = Histogram.empty(3).add(rows)
    monkeypatch.setattr("tfcompress.quantization.histogram._CHUNK", 100)
    np.testing.assert_array_equal(Histogram.empty(3).add(rows).counts, whole.counts)


def test_memory_is_bounded():
    assert Histogram.empty(1).counts.shape == (1, 4096)
    assert Histogram.empty(2048).counts.shape == (2048, 512)
    assert Histogram.empty(10**5).counts.shape == (10**5, 256)
