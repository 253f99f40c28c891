"""Channels that become silent while a model trains, and leave it afterwards."""

import keras
import numpy as np
import pytest

import tfcompress as tfc

layers = keras.layers


def residual_network():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    x = layers.BatchNormalization()(x)
    y = layers.Conv2D(12, 3, padding="same", activation="relu", name="inside")(x)
    x = layers.ReLU()(layers.Add()([x, layers.Conv2D(8, 3, padding="same", name="back")(y)]))
    outputs = layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    return model


@pytest.fixture
def data():
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)
    return x, np.arange(64) % 4


@pytest.mark.parametrize("score", ["magnitude", "geometric_median", "gradient", "apoz"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_half_of_the_channels_fall_silent_and_leave(data, score, scope):
    model = residual_network()
    pruning = tfc.PruneOnSchedule(
        {"polynomial": {"end": 0.5, "end_step": 6}},
        pattern="channel",
        score=score,
        scope=scope,
        update_every=2,
        data=data,
    )
    history = model.fit(*data, epochs=2, batch_size=8, verbose=0, callbacks=[pruning])
    assert history.history["channel_sparsity"][-1] == 0.5
    small = tfc.remove_dead_channels(model)
    widths = [small.get_layer(name).filters for name in ("stem", "inside")]
    assert sum(widths) == 10
    assert scope == "global" or widths == [4, 6]
    before, after = (m.predict(data[0], verbose=0) for m in (model, small))
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)


def test_a_second_fit_goes_on_from_the_channels_that_are_silent(data):
    model = residual_network()
    model.fit(
        *data,
        batch_size=8,
        verbose=0,
        callbacks=[tfc.PruneOnSchedule({"one_shot": {"end": 0.5}}, pattern="channel")],
    )
    silent = ~model.get_layer("back").kernel.numpy().any(axis=(0, 1, 3))
    model.fit(
        *data,
        batch_size=8,
        verbose=0,
        callbacks=[tfc.PruneOnSchedule({"one_shot": {"end": 0.75}}, pattern="channel")],
    )
    later = ~model.get_layer("back").kernel.numpy().any(axis=(0, 1, 3))
    assert silent.sum() == 6
    assert later.sum() == 9
    assert (later >= silent).all()


def test_rules_and_recurrent_layers(data):
    model = keras.Sequential(
        [
            keras.Input((5, 3)),
            layers.LSTM(8, name="first", return_sequences=True),
            layers.LSTM(8, name="second"),
            layers.Dense(4, name="head"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    x = np.random.default_rng(0).normal(size=(32, 5, 3)).astype(np.float32)
    callback = tfc.PruneOnSchedule(
        {"one_shot": {"end": 0.5}},
        pattern="channel",
        rules=[{"layers": "second", "skip": "feeds the head"}],
    )
    model.fit(x, np.arange(32) % 4, verbose=0, callbacks=[callback])
    assert callback.skipped == {"second/cell/recurrent_kernel": "a rule keeps all its channels"} | {
        "head/kernel": "a rule keeps all its channels"
    }
    small = tfc.remove_dead_channels(model)
    assert [small.get_layer(name).units for name in ("first", "second")] == [4, 8]
    before, after = (m.predict(x, verbose=0) for m in (model, small))
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)


def test_what_a_rule_spares_is_not_counted_and_needs_no_score(data):
    model = residual_network()
    callback = tfc.PruneOnSchedule(
        {"one_shot": {"end": 0.5}},
        pattern="channel",
        score="bn_scale",
        rules=[{"layers": "inside", "skip": "no BatchNorm follows"}],
    )
    history = model.fit(*data, verbose=0, callbacks=[callback])
    assert history.history["channel_sparsity"] == [0.5]
    small = tfc.remove_dead_channels(model)
    assert [small.get_layer(name).filters for name in ("stem", "inside")] == [4, 12]


def test_bad_input(data):
    with pytest.raises(tfc.InputError, match=r"score Apoz of PruneOnSchedule needs data=\(x, y\)"):
        residual_network().fit(
            *data,
            verbose=0,
            callbacks=[tfc.PruneOnSchedule({"one_shot": {"end": 0.5}}, "apoz", "channel")],
        )
    with pytest.raises(tfc.InputError, match="Unknown channel score 'geometric_mean'"):
        tfc.PruneOnSchedule({"one_shot": {"end": 0.5}}, "geometric_mean", "channel")
    with pytest.raises(tfc.InputError, match=r"Unknown pattern 'channels'. Did you mean 'channel'"):
        tfc.PruneOnSchedule({"one_shot": {"end": 0.5}}, pattern="channels")
    half = [{"layers": ".*", "keep_at_least": 0.5}]
    too_much = tfc.PruneOnSchedule({"one_shot": {"end": 0.6}}, pattern="channel", rules=half)
    with pytest.raises(tfc.InputError, match="than rules and one .* leave, 0.525. Received: end"):
        residual_network().fit(*data, verbose=0, callbacks=[too_much])
    spared = [{"layers": ".*", "skip": "all of them"}]
    with pytest.raises(
        tfc.InputError, match="at least one group of channels that .* no rule spares"
    ):
        residual_network().fit(
            *data,
            verbose=0,
            callbacks=[
                tfc.PruneOnSchedule({"one_shot": {"end": 0.5}}, pattern="channel", rules=spared)
            ],
        )
