"""Any model as one flat graph, and graphs rebuilt."""

import keras
import numpy as np
import pytest

from tfcompress import InputError, graph, structured

layers = keras.layers


class Branches(keras.Model):
    """A subclassed model with a nested one, operators and a `training` argument."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.left = layers.Dense(4, name="dense")
        self.right = keras.Sequential([layers.Dense(4, name="dense"), layers.BatchNormalization()])

    def call(self, x, training=None):
        return self.left(x) + self.right(x, training=training) * 2.0


class Branching(Branches):
    """Its `call` needs a value, which no graph has."""

    def call(self, x, training=None):
        return self.left(x) if float(keras.ops.sum(x)) > 0 else self.right(x)


def sample(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def nested():
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(3, 3, padding="same"), layers.Dropout(0.5)],
        name="inner",
    )
    inputs = keras.Input((8, 8, 3))
    x = inner(inputs) + inner(inputs * 2.0)
    x = keras.ops.reshape(x, (-1, 192))
    return keras.Model(inputs, {"small": layers.Dense(2)(x), "large": layers.Dense(3)(x)})


def assert_same(first, second, x):
    for a, b in zip(keras.tree.flatten(first(x)), keras.tree.flatten(second(x)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nested_models_and_operators_become_one_graph():
    model = nested()
    flat = graph.functional(model)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert set(flat.output) == {"small", "large"}
    assert_same(model, flat, sample(2, 8, 8, 3))


def test_shared_layers_stay_shared():
    flat = graph.functional(nested())
    (convolution,) = [x for x in flat.layers if isinstance(x, layers.Conv2D)]
    assert graph.calls(flat)[id(convolution)] == 2


def test_a_subclassed_model_is_traced_and_left_alone():
    model, x = Branches(), sample(3, 5)
    model(x)
    before = [(len(y._inbound_nodes), len(y._outbound_nodes)) for y in model._flatten_layers()]
    flat, origins = graph.flatten(model)
    assert_same(model, flat, x)
    after = [(len(y._inbound_nodes), len(y._outbound_nodes)) for y in model._flatten_layers()]
    assert after == before
    for name in ("dense", "dense_1"):
        copy, original = flat.get_layer(name).get_weights(), origins[name].get_weights()
        for now, then in zip(copy, original, strict=True):
            np.testing.assert_array_equal(now, then)


def test_weights_are_copies():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    kept = model.get_weights()
    graph.functional(model).set_weights([np.zeros((4, 2)), np.zeros(2)])
    for now, then in zip(model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_rebuilt_graph_is_saved_and_loaded(tmp_path):
    flat = graph.rebuild(graph.functional(nested()))
    flat.save(tmp_path / "flat.keras")
    assert_same(flat, keras.models.load_model(tmp_path / "flat.keras"), sample(2, 8, 8, 3))


def test_a_graph_may_have_more_layers_in_a_row_than_python_has_calls(tmp_path):
    x = inputs = keras.Input((2,))
    for _ in range(1050):
        x = layers.Identity()(x)
    rebuilt = graph.rebuild(keras.Model(inputs, x), lambda node, layer, *a, **k: layer(*a, **k))
    rebuilt.save(tmp_path / "deep.keras")
    assert len(keras.models.load_model(tmp_path / "deep.keras").layers) == 1051


def test_rebuilt_graphs_of_models_that_another_process_named_have_unique_names():
    keras.utils.clear_session()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(4, name="multiply")(inputs + 1.0))
    keras.utils.clear_session()  # as in a process that has loaded it

    new = graph.rebuild(model, lambda node, copy, x, *args: copy(x * 2.0, *args) + 0.0)

    names = [node.operation.name for node in graph.nodes(new)]
    assert len(names) == 6 and {"add", "multiply"} < set(names) and len(set(names)) == 6
    dense = model.get_layer("multiply")
    x = sample(3, 4)
    np.testing.assert_allclose(new(x), dense((2 * x + 1) * 2), rtol=1e-6)


def test_exported_graphs_have_no_dropout():
    names = {type(x).__name__ for x in graph.exported(nested()).layers}
    assert names == {"InputLayer", "Conv2D", "Dense"}


def test_trainability_and_precision_are_kept():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, dtype="mixed_float16")])
    model.layers[0].trainable = False
    (dense,) = graph.functional(model).layers[1:]
    assert not dense.trainable and dense.compute_dtype == "float16"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: keras.Sequential([layers.Dense(2)]), "must be built"),
        (Branches, "must be built"),
        (lambda: called(Branching()), "whose `call` runs on symbolic tensors"),
        (lambda: keras.Sequential([keras.Input((4,)), Unsaved(3)]), "must be rebuilt from"),
    ],
)
def test_what_is_no_graph_says_why(build, message):
    with pytest.raises(InputError, match=message):
        graph.functional(build())


def called(model):
    model(sample(3, 5))
    return model


class Unsaved(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.units = object()

    def get_config(self):
        raise NotImplementedError("no configuration")

    def call(self, x):
        return x


def test_an_adapted_normalization_stays_adapted():
    x = np.random.default_rng(0).normal(5, 3, (50, 4)).astype(np.float32)
    normalization = keras.layers.Normalization()
    normalization.adapt(x)
    model = keras.Sequential([keras.Input((4,)), normalization])
    for copy in (
        graph.rebuild(graph.functional(model)),
        structured.keep_channels(structured.channel_groups(model), {}),
    ):
        np.testing.assert_array_equal(copy.predict(x, verbose=0), model.predict(x, verbose=0))
        assert abs(copy.predict(x, verbose=0).mean()) < 1e-5
