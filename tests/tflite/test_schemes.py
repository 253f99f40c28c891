"""`convert` with chosen integers: the file, read back, holds just what was chosen."""

import warnings

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress import quantization, tflite
from tfcompress.errors import InputError
from tfcompress.quantization import granularity
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.operators import KERNELS

layers = keras.layers
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(24, 8, 8, 3)).astype(np.float32)


def small():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="stem")(inputs)
    x = layers.DepthwiseConv2D(3, name="deep")(x)
    x = layers.Conv2D(6, 1, activation="relu", name="point")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="small")


def with_biases():
    """The same; a bias of zeros would not be in the file at all."""
    model = small()
    for name in ("stem", "deep", "point", "head"):
        bias = model.get_layer(name).bias
        bias.assign(np.random.default_rng(1).normal(scale=0.2, size=bias.shape))
    return model


def stored(content):
    """Returns by number of the kernel operator: name, kernel's codes, its record."""
    model = fb.parse(content)
    main = model.subgraphs[0]
    found = []
    for operator in main.operators:
        name = fb.operator_name(model, operator)
        if name in KERNELS:
            tensor = main.tensors[int(operator.inputs[KERNELS[name].kernel])]
            found.append((name, fb.data(model, tensor), tensor))
    return found


def expected(model, bits=8, rounding="nearest", granularity_="per_channel", ranges="min_max"):
    """Returns the codes and scales that the array layer gives for the Keras kernels."""
    found = []
    for name, axes in (("stem", (3,)), ("deep", (2, 3)), ("point", (3,)), ("head", (1,))):
        kernel = np.asarray(model.get_layer(name).kernel)
        codes = quantization.Codes(bits[name] if isinstance(bits, dict) else bits)
        grid = granularity.fit(kernel, axes, granularity_, ranges, codes, rounding)
        integers = granularity.quantize(kernel, grid, rounding)
        if name == "head":
            integers = integers.T
        elif name == "deep":
            integers = integers.reshape(1, 3, 3, -1)
        else:
            integers = integers.transpose(3, 0, 1, 2)
        found.append((integers, np.ravel(grid.scale)))
    return found


@pytest.mark.parametrize(
    ("rounding", "granularity_", "weight_ranges"),
    [
        ("nearest", "per_channel", "min_max"),
        ("truncate", "per_tensor", "mse"),
        ("max_plus_one", "per_channel", {"percentile": {"percent": 99.0}}),
        ({"kmeans": {"clusters": 8}}, "per_tensor", "sigma"),
    ],
)
def test_the_files_integers_are_those_of_the_array_layer(rounding, granularity_, weight_ranges):
    model = small()
    content = tflite.convert(
        model,
        "int8",
        IMAGES,
        rounding=rounding,
        granularity=granularity_,
        weight_ranges=weight_ranges,
    )
    assert tflite.audit(content).full_integer
    wanted = expected(model, 8, rounding, granularity_, weight_ranges)
    for (_, codes, tensor), (integers, scale) in zip(stored(content), wanted, strict=True):
        np.testing.assert_array_equal(codes, integers)
        np.testing.assert_allclose(tensor.quantization.scale, scale, rtol=1e-6)


def test_without_choices_it_is_what_the_tflite_converter_makes():
    model = small()
    ours, theirs = (
        stored(tflite.convert(model, "int8", IMAGES, **choice))
        for choice in ({"rounding": "nearest"}, {})
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_allclose(one[2].quantization.scale, other[2].quantization.scale, 1e-6)
    contents = [tflite.convert(model, "int8", IMAGES, **c) for c in ({"ranges": "min_max"}, {})]
    outputs = [tflite.audit(content).outputs[0] for content in contents]
    assert outputs[0]["zero_point"] == outputs[1]["zero_point"]
    np.testing.assert_array_equal(*(tflite.run_integers(c, IMAGES) for c in contents))


def output_error(model, content):
    """Returns the squared error of the head's outputs, from the inputs that the file gives it."""
    file = fb.parse(content)
    operator = next(o for o in file.subgraphs[0].operators if is_head(file, o))
    engine = tflite.interpreter.start(content, preserve=True)
    details = {d["index"]: d for d in engine.get_tensor_details()}
    tensors = [file.subgraphs[0].tensors[int(i)] for i in operator.inputs[1:]]
    kernel, bias = (fb.scales(t) * fb.data(file, t).T.astype(np.float64) for t in tensors)
    error = 0.0
    for image, wanted in zip(IMAGES, np.asarray(model(IMAGES)), strict=True):
        detail = engine.get_input_details()[0]
        engine.set_tensor(detail["index"], tflite.interpreter.quantize(image[None], detail))
        engine.invoke()
        number = int(operator.inputs[0])
        seen = tflite.interpreter.dequantize(engine.get_tensor(number), details[number])
        error += float(np.sum((seen @ kernel + bias - wanted) ** 2))
    return error


def is_head(file, operator):
    shapes = [fb.shape(file.subgraphs[0].tensors[int(i)]) for i in operator.outputs]
    return fb.operator_name(file, operator) == "FULLY_CONNECTED" and shapes == [(1, 5)]


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_adaround_is_never_worse_than_nearest_in_the_layers_outputs(scheme):
    """Behind layers that adaround rounded, the head's own rounding makes the difference."""
    model = with_biases()
    errors = {
        rounding: output_error(
            model,
            tflite.convert(
                model,
                scheme,
                IMAGES,
                rounding="adaround",
                rules=[{"layers": "head", "rounding": rounding}],
            ),
        )
        for rounding in ("nearest", "adaround")
    }
    assert errors["adaround"] < 0.5 * errors["nearest"]


@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_adaround_keeps_the_outputs_means(activations):
    """The biases make up for what rounding, and the layers before, do to the mean."""
    model = with_biases()
    wanted = np.asarray(model(IMAGES)).mean(axis=0)
    words = {"activations": activations, "target": "reference"}
    off = []
    for rounding in ("nearest", "adaround"):
        content = tflite.convert(model, "int4", IMAGES, rounding=rounding, **words)
        off.append(np.abs(tflite.run(content, IMAGES).mean(axis=0) - wanted).max())
    step = tflite.audit(content).outputs[0]["scale"] or 0.0
    assert off[1] < 1e-5 + step / 2 and off[1] < 0.1 * off[0], off


def test_adaround_sees_the_inputs_of_every_kind_of_kernel():
    """Per layer, in the exported file: the error of its outputs is below that of nearest."""
    inputs = keras.Input((7, 9, 4))
    outputs = [
        layers.Conv2D(5, 3, strides=2, padding="same")(inputs),
        layers.Conv2D(4, 3, dilation_rate=2, padding="same")(inputs),
        layers.Conv2D(6, 3, groups=2)(inputs),
        layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)(inputs),
        layers.Conv2DTranspose(3, 3, strides=2, padding="same")(inputs),
        layers.Conv2DTranspose(3, 2, strides=3)(inputs),
        layers.Dense(5)(inputs),
    ]
    model = keras.Model(inputs, outputs)
    x = RANDOM.normal(size=(16, 7, 9, 4)) + RANDOM.normal(2, 1, size=(16, 1, 1, 4))
    x = x.astype(np.float32)
    # Weights alone: what the file computes differs from Keras by the rounding of kernels.
    choices = {"activations": "float32", "target": "reference"}
    errors = []
    for rounding in ("nearest", "adaround"):
        content = tflite.convert(model, "int4", x, rounding=rounding, **choices)
        found = tflite.run(content, x)
        errors.append(
            [np.sum((y - np.asarray(t)) ** 2) for y, t in zip(found, model(x), strict=True)]
        )
    nearest, adaround = np.array(errors)
    assert (adaround < 0.9 * nearest).all(), adaround / nearest


def test_ranges_of_activations_are_those_of_the_method():
    model = small()
    outlier = IMAGES.copy()
    outlier[0, 0, 0, 0] = 50.0
    wide, narrow = (
        tflite.audit(tflite.convert(model, "int8", outlier, ranges=ranges)).inputs[0]["scale"]
        for ranges in ("min_max", {"percentile": {"percent": 99.9}})
    )
    assert wide == pytest.approx((50 - outlier.min()) / 255, rel=1e-5) and narrow < wide / 3


def types(content):
    return [(name, fb.type_name(tensor)) for name, _, tensor in stored(content)]


def test_int4_holds_4_bits_where_they_are_fast_and_8_elsewhere():
    model = small()
    content = tflite.convert(model, "int4", IMAGES)
    assert types(content) == [
        ("CONV_2D", "INT8"),
        ("DEPTHWISE_CONV_2D", "INT8"),
        ("FULLY_CONNECTED", "INT4"),
        ("FULLY_CONNECTED", "INT4"),
    ]
    audit = tflite.audit(content)
    assert audit.full_integer and len(audit.delegated_operators) == sum(audit.operators.values())
    wanted = expected(model, {"stem": 8, "deep": 8, "point": 4, "head": 4})
    for (_, codes, _), (integers, _) in zip(stored(content), wanted, strict=True):
        np.testing.assert_array_equal(codes.ravel(), integers.ravel())
    steps = np.subtract(
        *(tflite.run_integers(content, IMAGES, xnnpack=on).astype(int) for on in (True, False))
    )
    assert np.abs(steps).max() <= 1


@pytest.mark.parametrize(
    ("target", "wanted"),
    [("tflm", ["INT4", "INT4", "INT4", "INT8"]), ("reference", ["INT4"] * 4)],
)
def test_targets_of_int4(target, wanted):
    content = tflite.convert(small(), "int4", IMAGES, target=target)
    assert [kind for _, kind in types(content)] == wanted
    assert tflite.audit(content).operators["CONV_2D"] == (1 if target == "xnnpack" else 2)


@pytest.mark.parametrize("activations", ["dynamic", "float32"])
def test_int4_with_float_activations_needs_no_samples(activations):
    model = small()
    content = tflite.convert(model, "int4", activations=activations)
    assert dict(types(content))["FULLY_CONNECTED" if activations == "dynamic" else "CONV_2D"]
    audit = tflite.audit(content)
    assert audit.tensors["INT4"] == 2 and audit.inputs[0]["dtype"] == "float32"
    assert ("DEQUANTIZE" in audit.operators) == (activations == "float32")


def test_blocks_of_32_inputs_share_a_scale():
    model = keras.Sequential([keras.Input((96,)), layers.Dense(8), layers.Dense(4, name="short")])
    x = RANDOM.normal(size=(16, 96)).astype(np.float32)
    with pytest.warns(UserWarning, match="'short'.*8 inputs cannot be cut into blocks of 32"):
        content = tflite.convert(
            model, "int4", x, activations="dynamic", granularity={"blocks": {"size": 32}}
        )
    (_, codes, tensor), (_, _, short) = stored(content)
    details = tensor.quantization.details
    assert details.blockSize == 32 and short.quantization.details is None
    flatbuffer = fb.parse(content)
    scales = fb.data(flatbuffer, flatbuffer.subgraphs[0].tensors[details.scales])
    kernel = np.asarray(model.layers[0].kernel).T
    largest = np.abs(kernel.reshape(8, 3, 32)).max(axis=2)
    np.testing.assert_allclose(scales, largest / 7, rtol=2**-7)
    error = np.abs(codes * np.repeat(scales, 32, axis=1).astype(np.float32) - kernel)
    assert (error <= np.repeat(scales, 32, axis=1) / 2 + 1e-6).all()
    assert tflite.compare(model, content, x).relative_error < 0.2


RULES = [
    {"layers": "stem", "scheme": "float16"},
    {"layers": "point", "scheme": "int4"},
    {"layers": "head/kernel", "scheme": "int16x8", "rounding": "truncate"},
]


def test_each_layer_of_a_mixed_file_has_the_scheme_of_its_rule():
    model = small()
    content = tflite.convert(model, "mixed", IMAGES, rules=RULES)
    flatbuffer = fb.parse(content)
    main = flatbuffer.subgraphs[0]
    seen = [
        (
            fb.operator_name(flatbuffer, operator),
            fb.type_name(main.tensors[operator.inputs[1]]),
            fb.type_name(main.tensors[operator.outputs[0]]),
        )
        for operator in main.operators
        if fb.operator_name(flatbuffer, operator) in KERNELS
    ]
    assert seen == [
        ("CONV_2D", "FLOAT32", "FLOAT32"),
        ("DEPTHWISE_CONV_2D", "INT8", "INT8"),
        ("FULLY_CONNECTED", "INT4", "INT8"),
        ("FULLY_CONNECTED", "INT8", "INT16"),
    ]
    assert tflite.audit(content).tensors["FLOAT16"] == 2
    assert tflite.compare(model, content, IMAGES).relative_error < 0.15
    head = expected(model, 8, "truncate")[-1][0]
    np.testing.assert_array_equal(stored(content)[-1][1], head)


def test_a_mixed_file_that_computes_in_floats_needs_no_samples():
    rules = [{"layers": ".*", "scheme": "float16"}]
    audit = tflite.audit(tflite.convert(small(), "mixed", rules=rules))
    assert audit.tensors["FLOAT16"] >= 4 and not {"INT8", "INT4"} & set(audit.tensors)


def test_paths_of_nested_and_inner_layers_select():
    inputs = keras.Input((6, 8))
    attended = layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    block = keras.Model(inputs, layers.LayerNormalization()(attended + inputs), name="block")
    outer = keras.Input((6, 8))
    model = keras.Model(outer, layers.Dense(3, name="head")(block(outer)))
    x = RANDOM.normal(size=(16, 6, 8)).astype(np.float32)
    rules = [{"layers": "block/attention/(query|key)/kernel", "scheme": "float16"}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = tflite.convert(model, "mixed", x, rules=rules)
    assert tflite.audit(content).tensors["FLOAT16"] == 2  # the biases are zeros: not stored
    assert tflite.compare(model, content, x).relative_error < 0.2


def test_layer_normalization_is_computed_in_integers_too():
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, layers.LayerNormalization()(layers.Dense(8)(inputs)))
    x = RANDOM.normal(size=(16, 6, 8)).astype(np.float32)
    content = tflite.convert(model, "int8", x, rounding="nearest")
    assert tflite.audit(content).full_integer  # the TFLite converter leaves its NEG in float
    assert tflite.compare(model, content, x).relative_error < 0.1


def test_dead_channels_and_large_biases_are_held():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    kernel, bias = model.get_weights()
    kernel[:, 0], bias[0] = 0.0, 3.0  # dead, with a bias
    kernel[:, 1], bias[1] = 1e-12, 2.0  # its bias would overflow 32 bits on its own scale
    model.set_weights([kernel, bias])
    x = RANDOM.normal(size=(32, 8)).astype(np.float32)
    content = tflite.convert(model, "int8", x, rounding="nearest")
    step = tflite.audit(content).outputs[0]["scale"]
    assert np.abs(tflite.run(content, x) - np.asarray(model(x))).max() < 2 * step
    dead = keras.Sequential([keras.Input((8,)), layers.Dense(4, kernel_initializer="zeros")])
    assert not tflite.run(tflite.convert(dead, "int4", x), x).any()


def bad_requests():
    yield "samples missing", {"scheme": "int4"}, "needs samples"
    yield "too few", {"rounding": "adaround", "samples": IMAGES[:3]}, "at least 8 samples"
    yield "shape", {"scheme": "int4", "samples": IMAGES[:, :4]}, r"\(n, 8, 8, 3\)"
    yield "NaN", {"scheme": "int4", "samples": IMAGES * np.nan}, "must be finite"
    yield "rounding", {"rounding": "adaroud"}, "Did you mean 'adaround'"
    yield "ranges", {"ranges": "msee"}, "Did you mean 'mse'"
    yield "tiers", {"granularity": "tiers"}, "that a .tflite file can hold"
    yield "blocks", {"granularity": {"blocks": {"size": 32}}}, "int4 with activations 'dynamic'"
    floats = {"scheme": "int4", "activations": "float32", "granularity": "blocks"}
    yield "blocks unpacked", floats, "with activations 'dynamic' only.*activations='float32'"
    yield "NaN for ranges", {"ranges": {"percentile": {"percent": "a"}}}, r"in \(50, 100\]"
    yield "no number", {"ranges": {"sigma": {"z": "big"}}}, "z of Sigma must be finite"
    yield "ranges of floats", {"scheme": "dynamic", "ranges": "mse"}, "integer activations"
    yield "target of int8", {"target": "tflm"}, "is for 4-bit weights"
    yield "two shapes", {"samples": [IMAGES, IMAGES[:, 0]]}, "one array for each of the model's 1"
    yield "size", {"granularity": {"blocks": {"size": 33}}}, "must be one of 32, 64, 128, 256"
    yield "target", {"target": "tfml"}, "Did you mean 'tflm'"
    yield "activations", {"activations": "dynamic"}, "for the schemes int4 and mixed only"
    yield "nothing to choose", {"scheme": "float16", "rounding": "nearest"}, "finds no integers"
    yield "no layer", {"scheme": "mixed", "rules": [{"layers": "sten"}]}, "nearest path is 'stem'"
    skip = [{"layers": "stem", "skip": "it is small"}]
    yield "skip", {"rules": skip}, "needs the scheme mixed"
    yield "scheme of a rule", {"rules": [{"layers": ".*", "scheme": "int4"}]}, "Unknown key"
    wrong = [{"layers": ".*", "scheme": "sparse"}]
    yield "a rule's scheme", {"scheme": "mixed", "rules": wrong}, "Unknown scheme for layer"


@pytest.mark.parametrize(("words", "message"), [bad[1:] for bad in bad_requests()])
def test_bad_words_are_one_line(words, message):
    words = {"scheme": "int8", **words}
    samples = words.pop("samples", None if "needs samples" in message else IMAGES)
    with pytest.raises(InputError, match=message) as caught:
        tflite.convert(small(), samples=samples, **words)
    assert "\n" not in str(caught.value)


def test_rules_that_contradict_are_refused():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.SeparableConv2D(4, 3, name="both")(inputs))
    rules = [{"layers": "both/pointwise_kernel", "scheme": "float16"}]
    with pytest.raises(InputError, match="'both' must not contradict"):
        tflite.convert(model, "mixed", IMAGES, rules=rules)


def test_what_cannot_be_held_is_named_with_its_reason():
    inputs = keras.Input((8, 8, 3))
    x = keras.ops.round(layers.Conv2D(4, 3, name="conv")(inputs))
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, name="last")(x))
    model = keras.Model(inputs, x)
    rules = [
        {"layers": "conv", "scheme": "int8"},
        {"layers": "relu", "scheme": "float16"},
        {"layers": "last", "skip": "it hurts"},
    ]
    with pytest.warns(UserWarning) as caught:
        tflite.convert(model, "mixed", IMAGES, rules=rules)
    said = " ".join(str(warning.message) for warning in caught)
    assert "'round' (ROUND) is float32, not int8: LiteRT has no kernel ROUND" in said
    assert "'relu' (rule) is without effect" in said and "'last' (CONV_2D)" in said
    assert "it hurts" in said and "'conv'" not in said


WIDE = RANDOM.normal(size=(48, 64)).astype(np.float32)


def perceptron():
    hidden = layers.Dense(64, activation="relu", name="hidden")
    return keras.Sequential([keras.Input((64,)), hidden, layers.Dense(32, name="head")])


BLOCKWISE = {"activations": "dynamic", "granularity": "blocks"}


def test_adaround_and_reports_read_scales_of_blocks():
    """A scale for each block lies in a tensor of its own, which no operator reads."""
    model = perceptron()
    content = tflite.convert(model, "int4", WIDE, rounding="adaround", **BLOCKWISE)
    assert tflite.compare(model, content, WIDE).relative_error < 0.2
    report = tfc.quantization_report(model, content, WIDE)
    assert {layer.path for layer in report.layers} >= {"hidden", "head"}


def test_blocks_of_a_mixed_file_are_for_its_int4_layers():
    rules = [{"layers": ".*", "scheme": "int4"}]
    content = tflite.convert(perceptron(), "mixed", rules=rules, **BLOCKWISE)
    assert all(tensor.quantization.details.blockSize == 32 for *_, tensor in stored(content))


def test_a_depthwise_kernel_of_dynamic_range_has_a_scale_for_each_channel():
    model = small()
    rules = [{"layers": "deep", "granularity": "per_tensor"}]
    (_, codes, tensor) = stored(tflite.convert(model, "dynamic", IMAGES, rules=rules))[1]
    assert len(fb.scales(tensor)) == 4 and len(np.unique(fb.scales(tensor))) == 1
    np.testing.assert_array_equal(codes, expected(model, 8, "nearest", "per_tensor")[1][0])


@pytest.mark.parametrize("scheme", ["int8", "int16x8", "int4"])
def test_what_is_dead_on_the_samples_is_named_and_the_rest_computes(scheme):
    model = with_biases()
    model.get_layer("stem").set_weights([np.zeros((3, 3, 3, 4)), np.full(4, -1.0)])
    with pytest.warns(UserWarning, match="of model 'small' are 0 for all samples: 'stem'"):
        content = tflite.convert(model, scheme, IMAGES)
    np.testing.assert_allclose(
        tflite.run(content, IMAGES), model.predict(IMAGES, verbose=0), atol=0.05
    )


def test_adaround_keeps_the_codes_that_clustering_on_the_grid_has_chosen():
    clustered = tfc.cluster(with_biases(), clusters=6, grid="int8")
    found = stored(tflite.convert(clustered, "int8", IMAGES, rounding="adaround"))
    plain = stored(tflite.convert(clustered, "int8", IMAGES))
    for (_, codes, _), (_, wanted, _) in zip(found, plain, strict=True):
        np.testing.assert_array_equal(codes, wanted)
        assert len(np.unique(codes)) <= 6


def test_adaround_of_corrected_biases_is_mentioned():
    """It keeps the means itself: what correct_bias has added would be an error of its own."""
    model = tfc.correct_bias(with_biases(), IMAGES)
    with pytest.warns(UserWarning, match="make up for the mean error of rounding nearest, which"):
        tflite.convert(model, "int8", IMAGES, rounding="adaround")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tflite.convert(model, "int8", IMAGES, rounding="nearest")
