"""Clustering methods side by side."""

import json

import keras
import numpy as np
import pytest

import tfcompress as tfc


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,)), keras.layers.Dense(20, "relu"), keras.layers.Dense(3)]
    return keras.Sequential(layers)


def test_the_optimum_has_the_least_error_and_figures_are_those_of_the_weights(model):
    x = np.random.default_rng(0).normal(size=(50, 6)).astype("float32")
    y = np.asarray(model(x)).argmax(axis=1)
    found = tfc.compare_clusterings(model, ["linear", "kmeans", "random"], clusters=4, data=(x, y))
    by_name = {result.method: result for result in found.results}
    assert min(by_name.values(), key=lambda result: result.error).method == "kmeans"
    assert found.baseline.accuracy == 1.0 and found.baseline.error == 0.0
    assert by_name["kmeans"].distinct_values == 4
    assert by_name["kmeans"].entropy_bits <= 2
    small = tfc.cluster(model, clusters=4)
    expected = np.mean(np.asarray(small(x)).argmax(axis=1) == y)
    assert by_name["kmeans"].accuracy == pytest.approx(expected)
    assert json.loads(json.dumps(found.to_dict()))["results"][1]["method"] == "kmeans"
    assert all(word in str(found) for word in ("linear", "kmeans", "random", "deflated"))
    assert len(found.plot().axes) == 4
    confusion = by_name["kmeans"].confusion
    assert (confusion.sum(axis=1) == np.bincount(y, minlength=3)).all()
    said = np.bincount(np.asarray(small(x)).argmax(axis=1), minlength=3)
    assert (confusion.sum(axis=0) == said).all()
    figure = found.plot_confusion("kmeans")
    assert figure.axes[1].get_title() == f"after: {by_name['kmeans'].accuracy:.2%} right"


def test_on_a_grid_the_error_is_that_of_the_folded_kernels_and_sizes_those_of_codes():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(16, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(4),
            layers.Dense(3),  # fewer weights than codes
        ]
    )
    model.layers[1].moving_variance.assign(np.linspace(0.1, 5, 16))
    found = tfc.compare_clusterings(model, ["kmeans"], 8, grid="int8")
    assert found.baseline.method == "(as int8)"
    assert found.baseline.error < 1e-3 < found.results[0].error < 0.05
    assert found.results[0].distinct_values == 8 < found.baseline.distinct_values <= 255
    assert found.results[0].deflated_bytes < 0.6 * found.baseline.deflated_bytes


def test_methods_of_one_name_are_told_apart_and_budgets_need_no_number(model):
    given = [{"kmeans": {"clusters": 3}}, "linear", {"kmeans": {"clusters": 5}}]
    own = tfc.compare_clusterings(model, given)
    assert [result.distinct_values for result in own.results] == [3, 16, 5]
    same = tfc.compare_clusterings(model, given, clusters=4)
    assert [result.distinct_values for result in same.results] == [4, 4, 4]
    found = tfc.compare_clusterings(model, given, max_bytes=200)
    assert [result.method for result in found.results] == ["kmeans", "linear", "kmeans 2"]
    assert not any(result.failed for result in found.results)


def test_bad_input_is_one_line(model):
    with pytest.raises(tfc.InputError, match="Unknown setting.* 'blok'.*'block'"):
        tfc.compare_clusterings(model, ["kmeans"], blok=(1, 2))
    empty = keras.Sequential([keras.Input((6,)), keras.layers.ReLU()])
    with pytest.raises(tfc.InputError, match="must have a kernel"):
        tfc.compare_clusterings(empty)
    with pytest.raises(tfc.InputError, match="Did you mean 'kmeans'"):
        tfc.compare_clusterings(model, ["kmean"])
    with pytest.raises(tfc.InputError, match="block for .* must not be larger"):
        tfc.compare_clusterings(model, ["kmeans"], block=(64, 64))
    with pytest.raises(tfc.InputError, match="must be 'all' or names"):
        tfc.compare_clusterings(model, "kmeans")
    with pytest.raises(tfc.InputError, match="one class number"):
        tfc.compare_clusterings(model, ["kmeans"], data=(np.zeros((5, 6)), np.zeros((5, 2))))
    with pytest.raises(tfc.InputError, match=r"class numbers in \[0, 3\).*highest=3"):
        tfc.compare_clusterings(model, ["kmeans"], data=(np.zeros((4, 6)), np.arange(4)))
    with pytest.raises(tfc.InputError, match="data for input .* must have the shape"):
        tfc.compare_clusterings(model, ["kmeans"], data=(np.zeros((4, 5)), np.arange(4)))
    binary = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, "sigmoid")])
    with pytest.raises(tfc.InputError, match="has one output, not one for each class"):
        tfc.compare_clusterings(binary, ["kmeans"], 2, data=(np.zeros((2, 6)), np.arange(2)))
    found = tfc.compare_clusterings(model, ["kmeans"])
    with pytest.raises(tfc.InputError, match="needs a comparison with `data`"):
        found.plot_confusion("kmeans")
    with pytest.raises(tfc.InputError, match="Did you mean 'kmeans'"):
        found.plot_confusion("kmean")
