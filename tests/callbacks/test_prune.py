import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.callbacks.conftest import small_model, zeros


def fit(model, data, *callbacks, epochs=3):
    return model.fit(*data, epochs=epochs, batch_size=32, verbose=0, callbacks=list(callbacks))


def test_sparsity_follows_the_schedule_and_reaches_its_end(data):
    model = small_model()
    schedule = tfc.schedules.Polynomial(end=0.75, begin_step=0, end_step=32)
    history = fit(model, data, tfc.PruneOnSchedule(schedule, update_every=4))
    assert zeros(model.get_layer("hidden")) == 0.75
    assert zeros(model.get_layer("head")) == 0.75
    sparsity = history.history["sparsity"]
    assert sparsity[0] == pytest.approx(schedule(16), abs=0.01)
    assert sparsity[1:] == [0.75, 0.75]
    assert all(seconds >= 0 for seconds in history.history["prune_seconds"])


def test_zeros_are_positive_zeros_to_the_last_bit(data):
    model = small_model()
    fit(model, data, tfc.PruneOnSchedule(tfc.schedules.Constant(end=0.5)))
    w = np.asarray(model.get_layer("hidden").kernel)
    assert np.count_nonzero(w.view(np.uint32)) == w.size // 2


def test_the_largest_weights_survive_a_one_shot(data):
    model = small_model(optimizer=keras.optimizers.SGD(0.0))
    before = np.abs(np.asarray(model.get_layer("hidden").kernel))
    fit(model, data, tfc.PruneOnSchedule({"one_shot": {"end": 0.75}}), epochs=1)
    after = np.asarray(model.get_layer("hidden").kernel)
    assert np.abs(after[after != 0]).min() > before[after == 0].max()


def test_pruned_weights_stay_pruned(data):
    model = small_model()
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(np.asarray(model.get_layer("hidden").kernel) == 0)

    schedule = tfc.schedules.Polynomial(end=0.8, end_step=40)
    fit(model, data, tfc.PruneOnSchedule(schedule, update_every=3), Watch())
    assert all((now[before]).all() for before, now in zip(seen, seen[1:], strict=False))


def test_steps_count_from_the_fit_and_not_from_the_optimizer(data):
    model = small_model()
    fit(model, data, epochs=3)
    history = fit(model, data, tfc.PruneOnSchedule(tfc.schedules.Polynomial(end=0.8, end_step=40)))
    assert history.history["sparsity"][0] < 0.8
    assert history.history["sparsity"][-1] == pytest.approx(0.8, abs=0.01)


def test_one_callback_goes_on_over_several_fits(data):
    model = small_model()
    callback = tfc.PruneOnSchedule(tfc.schedules.Polynomial(end=0.75, end_step=32), update_every=1)
    for _ in range(3):
        history = fit(model, data, callback, epochs=1)
    assert history.history["sparsity"] == [0.75]


def test_rules_change_and_skip(data):
    model = small_model()
    callback = tfc.PruneOnSchedule(
        tfc.schedules.Constant(end=0.5),
        rules=[{"layers": "hidden", "end": 0.75}, {"layers": "head/.*", "skip": "the head"}],
    )
    fit(model, data, callback, epochs=1)
    assert zeros(model.get_layer("hidden")) == 0.75
    assert zeros(model.get_layer("head")) == 0
    assert callback.skipped == {"head/kernel": "the head"}


def test_global_scope_reaches_the_share_over_all_kernels(data):
    model = small_model()
    history = fit(
        model,
        data,
        tfc.PruneOnSchedule(tfc.schedules.Constant(end=0.5), score="lamp", scope="global"),
        epochs=1,
    )
    assert history.history["sparsity"][-1] == pytest.approx(0.5, abs=0.01)
    assert zeros(model.get_layer("hidden")) != zeros(model.get_layer("head"))


def test_blocks_are_pruned_whole(data):
    model = small_model()
    pattern = {"block": {"block": (1, 4)}}
    fit(model, data, tfc.PruneOnSchedule(tfc.schedules.Constant(end=0.5), pattern=pattern))
    blocks = np.asarray(model.get_layer("hidden").kernel).reshape(8, 4, 4) == 0
    assert (blocks.all(axis=2) == blocks.any(axis=2)).all()
    assert blocks.mean() == 0.5


def test_the_users_constraint_is_applied_and_given_back(data):
    model = small_model()
    hidden = model.get_layer("hidden")
    hidden.kernel.constraint = keras.constraints.NonNeg()
    own = hidden.kernel.constraint
    fit(model, data, tfc.PruneOnSchedule(tfc.schedules.Constant(end=0.5)))
    assert (np.asarray(hidden.kernel) >= 0).all()
    assert zeros(hidden) >= 0.5
    assert hidden.kernel.constraint is own
    assert model.get_layer("head").kernel.constraint is None


def test_training_is_free_again_afterwards(data):
    model = small_model()
    fit(model, data, tfc.PruneOnSchedule(tfc.schedules.Constant(end=0.5)), epochs=1)
    fit(model, data, epochs=1)
    assert zeros(model.get_layer("hidden")) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": {"polinomial": {"end": 0.5}}}, "Did you mean 'polynomial'?"),
        ({"schedule": {"constant": {"end": 1.0}}}, r"\[0, 1\).*end=1.0"),
        ({"schedule": {"constant": {"end": 0.5}}, "score": "magnitud"}, "'magnitude'"),
        ({"schedule": {"constant": {"end": 0.5}}, "pattern": "blok"}, "'block'"),
        ({"schedule": {"constant": {"end": 0.5}}, "scope": "globl"}, "'global'"),
        ({"schedule": {"constant": {"end": 0.5}}, "update_every": 0}, "update_every=0"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, message):
    with pytest.raises(tfc.InputError, match=message) as caught:
        tfc.PruneOnSchedule(**arguments)
    assert "\n" not in str(caught.value)


def test_a_rule_that_matches_nothing_stops_before_training(data):
    model = small_model()
    before = model.get_weights()
    rules = [{"layers": "hiden/kernel", "end": 0.9}]
    with pytest.raises(tfc.InputError, match="hidden/kernel"):
        fit(model, data, tfc.PruneOnSchedule(tfc.schedules.Constant(end=0.5), rules=rules))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("end", "scope", "message"),
    [(0.6, "layer", "hidden/kernel.*0.5.*end=0.6"), (0.5, "global", "scope='global'")],
)
def test_two_of_four_cannot_do_more_than_half(data, end, scope, message):
    callback = tfc.PruneOnSchedule(tfc.schedules.Constant(end=end), pattern="n_of_m", scope=scope)
    with pytest.raises(tfc.InputError, match=message):
        fit(small_model(), data, callback)


def test_two_of_four(data):
    model = small_model()
    schedule = tfc.schedules.Polynomial(end=0.5, end_step=20)
    fit(model, data, tfc.PruneOnSchedule(schedule, pattern="n_of_m", update_every=4))
    groups = np.asarray(model.get_layer("hidden").kernel).reshape(2, 4, 16)
    assert (np.count_nonzero(groups, axis=1) == 2).all()


def test_a_short_ramp_is_still_a_ramp(data):
    model = small_model()
    schedule = tfc.schedules.Polynomial(end=0.8, end_step=40)
    history = fit(model, data, tfc.PruneOnSchedule(schedule))
    assert history.history["sparsity"][0] == pytest.approx(schedule(16), abs=0.01)
    assert history.history["sparsity"][1] == pytest.approx(schedule(32), abs=0.01)
