"""Data in every form is the same data, and the loss is that of Keras without its penalties."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.data import load
from tfcompress.errors import InputError
from tfcompress.structured.evaluation import batches, evaluate_loss, loss_of

layers = keras.layers
X = np.arange(14, dtype=np.float32).reshape(7, 2)
Y = np.arange(7)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[3 * index : 3 * index + 3], Y[3 * index : 3 * index + 3]


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        (X.tolist(), Y.tolist()),
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(3),
        Batches(),
    ],
    ids=["arrays", "lists", "dataset", "sequence"],
)
def test_all_forms_give_the_same_batches(data):
    if isinstance(data[0] if isinstance(data, tuple) else None, list):
        data = tuple(map(np.asarray, data))
    found = [(np.asarray(x), np.asarray(y)) for x, y in batches(data, batch_size=3)]
    assert [len(x) for x, _ in found] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), X)
    np.testing.assert_array_equal(np.concatenate([y for _, y in found]), Y)


def test_several_inputs_and_outputs_stay_lists_and_dicts():
    ((x, y),) = batches(([X, X + 1], {"one": Y}), batch_size=10)
    np.testing.assert_array_equal(x[1], X + 1)
    np.testing.assert_array_equal(y["one"], Y)
    ((x, y),) = batches([X, X + 1], batch_size=10)
    assert len(x) == 2 and y is None
    ((x, y),) = batches({"a": X}, batch_size=10)
    assert set(x) == {"a"} and y is None


def test_a_part_of_sorted_data_is_drawn_from_all_of_it():
    x = np.arange(1000.0)
    first = [row for row, _ in batches((x, x), batch_size=10, most=5)]
    again = [row for row, _ in batches((x, x), batch_size=10, most=5)]
    np.testing.assert_array_equal(first, again)
    assert np.shape(first) == (5, 10) and len(np.unique(first)) == 50
    assert np.max(first) > 800 and np.min(first) < 200
    assert len(list(batches((x, x), 300, most=10))) == 4


def test_the_training_split_of_data_as_the_model_sees_it():
    data = load("digits", standardize="unit")
    found = list(batches(data, batch_size=256))
    np.testing.assert_array_equal(np.concatenate([y for _, y in found]), data.y_train)
    np.testing.assert_allclose(found[0][0], data.prepare(data.x_train[:256]))


def test_endless_data_is_cut():
    endless = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2).repeat()
    assert len(list(batches(endless, most=9))) == 9
    with pytest.raises(InputError, match="data must be finite, or the number of batches given"):
        list(batches(endless))


def test_bad_data():
    for data, message in (
        ((X, Y[:3]), r"one length. Received: lengths=\[3, 7\]"),
        ((X[:0], Y[:0]), "data must not be empty"),
        ((X, Y, Y), "no sample weights. Received: parts=3"),
        ("digits", r"must be \(x, y\) or x as arrays, .* Received: data='str'"),
        (iter([(X, Y)]), "Received: data='list_iterator'"),
    ):
        with pytest.raises(InputError, match=message):
            list(batches(data))
    for wrong in (0, "8"):
        with pytest.raises(InputError, match="batch_size must be a whole number of at least 1"):
            list(batches((X, Y), batch_size=wrong))


def model_of(outputs, **compiled):
    inputs = keras.Input((2,), name="x")
    made = [
        layers.Dense(units, kernel_regularizer="l2", name=name)(inputs)
        for name, units in outputs.items()
    ]
    model = keras.Model(inputs, made if len(made) > 1 else made[0])
    model.compile("sgd", **compiled)
    return model


def penalty(model):
    return float(sum(model.losses))


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanAbsoluteError(), "huber"])
def test_the_loss_is_that_of_evaluate_without_the_penalty(loss):
    model = model_of({"out": 1}, loss=loss)
    expected = model.evaluate(X, Y, batch_size=3, verbose=0) - penalty(model)
    assert evaluate_loss(model, (X, Y), batch_size=3) == pytest.approx(expected, rel=1e-5)
    assert evaluate_loss(model, (X, Y), loss, batch_size=7) == pytest.approx(expected, rel=1e-5)


def test_labels_as_numbers():
    model = model_of({"out": 7})
    logits = model.predict(X, verbose=0).astype(np.float64)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(7), Y])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert evaluate_loss(model, (X, Y), loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", [list, dict])
def test_several_outputs_and_their_weights(form):
    losses, weights, labels = ["mse", "mae"], [1.0, 0.25], [Y, 2 * Y]
    if form is dict:
        losses, weights, labels = (
            dict(zip(("a", "b"), part, strict=True)) for part in (losses, weights, labels)
        )
    model = model_of({"a": 1, "b": 1}, loss=losses, loss_weights=weights)
    expected = model.evaluate(X, labels, verbose=0, return_dict=True)["loss"] - penalty(model)
    for _ in range(2):
        assert evaluate_loss(model, (X, labels)) == pytest.approx(expected, rel=1e-5)


def test_two_inputs_by_name():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    model = keras.Model([a, b], layers.Subtract()([a, b]))
    for x in ([X, 2 * X], {"b": 2 * X, "a": X}):
        assert evaluate_loss(model, (x, 0 * X), "mae") == pytest.approx(X.mean())


def test_mixed_precision():
    model = model_of({"out": 1}, loss="mse")
    half = keras.Sequential([keras.Input((2,)), layers.Dense(1, dtype="mixed_float16")])
    half.set_weights(model.get_weights())
    assert evaluate_loss(half, (X, Y), "mse") == pytest.approx(
        evaluate_loss(model, (X, Y)), rel=1e-2
    )


def test_bad_losses():
    model = model_of({"out": 1})
    with pytest.raises(InputError, match="must be compiled with a loss, or `loss` be given"):
        loss_of(model)
    for loss in ("mean_squre", 3):
        with pytest.raises(InputError, match=f"Could not interpret loss identifier: {loss}"):
            evaluate_loss(model, (X, Y), loss)
    with pytest.raises(InputError, match="a loss needs labels"):
        evaluate_loss(model, X, "mse")
    with pytest.raises(InputError, match=r"shape \('n', 2\). Received: shape=\(7, 3\)"):
        evaluate_loss(model, (np.ones((7, 3)), Y), "mse")
    with pytest.raises(InputError, match="one array for each input .x.. Received: arrays=2"):
        evaluate_loss(model, ([X, X], Y), "mse")
    with pytest.raises(InputError, match="must be finite. Received: loss=inf"):
        evaluate_loss(model, (X * 1e30, Y), "mse")
