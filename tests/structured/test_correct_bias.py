"""Bias correction puts the means of layers' outputs right, by samples and by BatchNorm alone."""

import keras
import numpy as np
import pytest
from hypothesis import assume, given
from scipy.stats import norm as normal

from tests.structured.random_graphs import models, outputs, randomize, samples
from tests.structured.silencing import distance, value
from tests.structured.test_removal_properties import examples
from tfcompress import weights
from tfcompress.errors import InputError
from tfcompress.quantization import dequantize, kernel_scale, quantize
from tfcompress.structured import correct_bias, equalize, fold_batch_norm
from tfcompress.structured.bias_errors import Layers
from tfcompress.structured.normal_flow import Normal, by_statistics, clipped

layers = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


def quantized(model, bits=4, per_channel=False):
    """The model with kernels snapped to their grids, by the arrays' own function."""
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    for kernel in weights.kernels(new):
        axes = kernel.output_axes if per_channel else ()
        w = kernel.value()
        scale = kernel_scale(w, axes, bits)
        kernel.variable.assign(dequantize(quantize(w, scale, bits=bits), scale))
    return new


def graph(build, shape=(8, 8, 3), seed=1):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, build(inputs))
    randomize(model, seed)
    return model


def every_kind(x):
    """Each layer's output is the next one's input, before any activation but ReLU layers."""
    x = layers.ReLU()(layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(x))
    x = layers.ReLU()(layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)(x))
    x = layers.ReLU()(layers.SeparableConv2D(5, 2, use_bias=False)(x))
    x = layers.ReLU()(layers.Conv2DTranspose(3, 2, strides=2, use_bias=False)(x))
    x = layers.ReLU()(layers.Conv2D(6, 1, groups=3)(x))
    x = layers.Dense(4, use_bias=False)(layers.Flatten()(x))
    return layers.EinsumDense("ab,bc->ac", 3, bias_axes="c")(layers.ReLU()(x))


def inner_means(model, x):
    """The channel means of each layer's outputs that has a kernel."""
    names = [kernel.layer.name for kernel in weights.kernels(model)]
    inner = keras.Model(model.inputs, [model.get_layer(n).output for n in dict.fromkeys(names)])
    return [value(y).astype(np.float64).mean(tuple(range(y.ndim - 1))) for y in inner(x)]


@pytest.mark.parametrize("per_channel", [False, True])
def test_each_layer_has_the_means_of_the_float_model(per_channel):
    model = graph(every_kind)
    (x,) = samples(model, count=32)
    before = model.get_weights()
    granularity = "per_channel" if per_channel else "per_tensor"
    corrected = correct_bias(model, x, bits=4, granularity=granularity, batch_size=7)
    expected = inner_means(model, x)
    wrong = inner_means(quantized(model, 4, per_channel), x)
    right = inner_means(quantized(corrected, 4, per_channel), x)
    assert len(expected) == 7
    for a, b, c in zip(expected, wrong, right, strict=True):
        assert np.abs(c - a).max() < 0.02 * np.abs(b - a).max()
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    for old, new in zip(weights.kernels(model), weights.kernels(corrected), strict=True):
        np.testing.assert_array_equal(new.value(), old.value())
    assert len(corrected.bias_correction.shifts) == 7
    assert not corrected.bias_correction.skipped


def test_a_model_quantized_by_other_means_keeps_its_weights():
    model = graph(every_kind)
    (x,) = samples(model, count=32)
    theirs = keras.models.clone_model(model)
    theirs.set_weights([np.trunc(w * 4) / 4 if w.ndim > 1 else w for w in model.get_weights()])
    corrected = correct_bias(model, x, quantized=theirs)
    for a, b in zip(inner_means(model, x), inner_means(corrected, x), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)
    for old, new in zip(weights.kernels(theirs), weights.kernels(corrected), strict=True):
        np.testing.assert_array_equal(new.value(), old.value())


@examples(8)
@given(models(most=5))
def test_with_many_bits_nothing_changes_and_kernels_never_do(model):
    x = samples(model, count=4)
    expected = outputs(model, x)
    try:
        corrected = correct_bias(model, x, bits=16)
    except InputError as error:
        assume("must have a layer that can be corrected" not in str(error))
        raise
    assert distance(outputs(corrected, x), expected) < 2e-2
    assert distance(outputs(model, x), expected) == 0
    assert all(shift < 1e-2 for shift in corrected.bias_correction.shifts.values())


def normalized_network(seed=0):
    """A network whose BatchNorms have seen data, and that data: (model, calibration, held out)."""
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)

    def norm(x):
        return layers.ReLU()(layers.BatchNormalization(momentum=0.5)(x))

    x = inputs = keras.Input((12, 12, 3))
    x = norm(layers.Conv2D(16, 3, use_bias=False)(x))
    x = norm(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    x = layers.Add()([x, norm(layers.Conv2D(16, 3, padding="same", use_bias=False)(x))])
    x = norm(layers.Conv2D(24, 3, strides=2, use_bias=False)(x))
    model = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    for variable in model.weights:
        if variable.name == "gamma":
            variable.assign(random.uniform(0.3, 2, variable.shape))
        elif variable.name == "beta":
            variable.assign(random.normal(scale=0.3, size=variable.shape))
    x = random.normal(0.3, 1, (300, 12, 12, 3)).astype(np.float32)
    for _ in range(8):
        model(x[:150], training=True)
    return model, x[:150], x[150:]


def mean_error(model, reference, x):
    """The mean over the outputs of |mean error|, of the model with 4 bits per tensor."""
    error = value(quantized(model)(x)) - value(reference(x))
    return np.abs(error.mean(0)).mean()


def test_the_mean_error_of_4_bits_falls():
    model, x, unseen = normalized_network()
    plain = mean_error(fold_batch_norm(model), model, unseen)
    options = {"bits": 4, "granularity": "per_tensor"}
    empirical = correct_bias(model, x, **options)
    assert mean_error(empirical, model, unseen) < 0.2 * plain
    analytic = correct_bias(model, method="analytic", **options)
    assert mean_error(analytic, model, unseen) < 0.6 * plain
    assert "no samples" in analytic.bias_correction.skipped["conv2d"]
    both = correct_bias(model, x, method="analytic", **options)
    assert mean_error(both, model, unseen) < 0.4 * plain
    assert not both.bias_correction.skipped
    equal = equalize(model)
    plain = mean_error(equal, model, unseen)
    assert mean_error(correct_bias(equal, x, **options), model, unseen) < 0.2 * plain
    corrected = correct_bias(equal, x, method="analytic", **options)
    assert mean_error(corrected, model, unseen) < 0.6 * plain


def test_clipped_moments_are_those_of_draws():
    draws = np.random.default_rng(0).normal(size=10**6)
    for mean, deviation, high in [(0.5, 1.0, np.inf), (-1.0, 0.5, np.inf), (4.0, 3.0, 6.0)]:
        found = clipped(Normal(np.array([mean]), np.array([deviation**2])), 0.0, high)
        expected = np.clip(mean + deviation * draws, 0.0, high)
        np.testing.assert_allclose(found.mean, expected.mean(), atol=0.02)
        np.testing.assert_allclose(found.variance, expected.var(), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", ["relu", "relu6", "silu", "tanh", "leaky_relu"])
def test_by_statistics_the_mean_is_the_integral(name):
    """A normal channel behind an activation, read by a kernel that is quantized to 0."""
    dense = layers.Dense(1, use_bias=False)
    inputs = keras.Input((3,))
    norm = layers.BatchNormalization(epsilon=1e-9)
    model = keras.Model(inputs, dense(layers.Activation(name)(norm(inputs))))
    randomize(model, 0)
    dense.kernel.assign(np.ones((3, 1)))
    errors, _ = by_statistics(Layers(model, {id(dense.kernel): np.zeros((3, 1))}), None, {})
    grid, step = np.linspace(-12, 12, 200_001, retstep=True)
    function = keras.activations.get(name)
    expected = sum(
        (value(function(beta + gamma * grid)) * normal.pdf(grid)).sum() * step
        for beta, gamma in zip(value(norm.beta), value(norm.gamma), strict=True)
    )
    np.testing.assert_allclose(errors[dense.name].shift, expected, atol=0.01)


def test_statistics_of_maps_of_open_size_are_not_known():
    norm = [layers.Conv2D(5, 3, name="stem"), layers.BatchNormalization(), layers.ReLU()]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((None, None, 3)), *norm, *head])
    with pytest.raises(InputError, match="head: .* 'stem' leaves sizes of its outputs open"):
        correct_bias(model, method="analytic")
    assert correct_bias(model, np.zeros((2, 8, 8, 3))).bias_correction.shifts.keys() == {
        "stem",
        "head",
    }


def test_rules_and_layers_without_a_single_bias_are_reported():
    model = graph(
        lambda x: layers.Dense(2, name="head")(
            layers.LSTM(4, name="lstm")(
                layers.Reshape((36, 5))(layers.Conv2D(5, 3, activation="relu", name="stem")(x))
            )
        )
    )
    (x,) = samples(model, count=8)
    rules = [{"layers": "stem", "skip": "it is small"}, {"layers": "head", "bits": 2}]
    report = correct_bias(model, x, rules=rules).bias_correction
    assert list(report.shifts) == ["head"]
    assert report.skipped == {
        "stem": "its weights stay float",
        "lstm": "LSTM has no single bias that is added to its outputs",
    }
    assert "skipped: stem" in str(report)


def test_the_model_keeps_its_kind_and_a_shared_layer_is_corrected_once():
    shared = layers.Dense(4, activation="relu", use_bias=False, name="shared")
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, shared, layers.Dense(2, name="head")])
    randomize(model, 0)
    (x,) = samples(model, count=64)
    corrected = correct_bias(model, x, bits=3)
    assert isinstance(corrected, keras.Sequential)
    assert corrected.layers[0].layers[0] is corrected.layers[1]
    assert corrected.layers[1].use_bias
    assert list(corrected.bias_correction.shifts) == ["inner/shared", "head"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": None}, "samples of correct_bias must be given"),
        ({"samples": np.zeros((4, 5))}, r"must have the shape \(n, 4\)"),
        ({"samples": np.full((4, 4), np.nan)}, "must be finite"),
        ({"samples": np.zeros((0, 4))}, "must not be empty"),
        ({"bits": 1}, r"bits of Codes must be a whole number in \[2, 16\]"),
        ({"bits": 4.5}, "bits of Codes must be"),
        ({"granularity": "per_row"}, "Unknown granularity 'per_row'"),
        ({"rounding": "nearestt"}, "Unknown rounding 'nearestt'. Did you mean 'nearest'"),
        ({"rounding": "adaround"}, "must not need a layer's inputs"),
        ({"ranges": "minmax"}, "Did you mean 'min_max'"),
        ({"method": "analytical"}, "Did you mean 'analytic'"),
        ({"method": "analytic"}, "must have BatchNorm layers"),
        ({"batch_size": 0}, "batch_size of correct_bias must be"),
        ({"rules": [{"layers": "tail"}]}, "matches no kernel"),
        ({"rules": [{"layers": ".*", "skip": "all"}]}, "must have a layer that can be corrected"),
        ({"quantized": graph(layers.Dense(3), (4,))}, "must have the layers and weights"),
    ],
)
def test_bad_input_is_one_line(options, message):
    model = graph(layers.Dense(2, name="head"), (4,))
    with pytest.raises(InputError, match=message) as caught:
        correct_bias(model, **{"samples": np.zeros((4, 4)), **options})
    assert "\n" not in str(caught.value)


def test_it_must_be_a_model():
    with pytest.raises(InputError, match="must be a Keras 3 model"):
        correct_bias("model.keras", np.zeros((4, 4)))
