"""Values by their numbers and nearest values: against numpy, in a graph and out of it."""

import numpy as np
import pytest
import tensorflow as tf

from tfcompress import lookup


@pytest.fixture(params=["eager", "graph", "compiled"])
def run(request, monkeypatch):
    if request.param == "compiled":
        monkeypatch.setattr(lookup, "_LARGE", 0)
    return (lambda function: function) if request.param == "eager" else tf.function


# 2, 7 and 64 values are compared with one by one, 65 and 300 searched among.
@pytest.mark.parametrize("columns", [1, 2, 7, 64, 65, 300])
def test_nearest_and_its_value(run, columns):
    rng = np.random.default_rng(0)
    entries = np.sort(rng.normal(size=(2, columns)).astype(np.float32))
    entries[1, columns // 2 + 1 :] = np.inf  # out of use
    x = rng.normal(size=(2, 500)).astype(np.float32)
    found = run(lookup.nearest)(tf.constant(x), tf.constant(entries)).numpy()
    expected = np.abs(x[..., np.newaxis] - entries[:, np.newaxis]).argmin(-1)
    np.testing.assert_array_equal(found, expected)
    values = run(lookup.looked_up)(tf.constant(expected, tf.int32), tf.constant(entries))
    np.testing.assert_array_equal(values, np.take_along_axis(entries, expected, 1))
