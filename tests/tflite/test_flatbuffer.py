"""Reading, slimming and auditing: properties of the file, not of what we meant to write."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcompress import tflite
from tfcompress.errors import InputError
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.interpreter import noise, start
from tfcompress.tflite.slim import same_outputs

layers = keras.layers
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(16, 12, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            layers.Conv2D(16, 1, groups=2),
            layers.Conv2DTranspose(4, 3, strides=2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, activation="softmax"),
        ]
    )


@pytest.fixture(scope="module")
def int8(model):
    return tflite.convert(model, "int8", IMAGES)


@pytest.fixture(scope="module")
def named(model):
    return tflite.convert(model, "int8", IMAGES, keep_names=True)


def test_slim_drops_bytes_and_inner_names_only(int8, named):
    assert len(int8) < len(named)
    assert same_outputs(int8, named, samples=8)
    graphs = [fb.parse(content).subgraphs[0] for content in (int8, named)]
    public = {*map(int, graphs[0].inputs), *map(int, graphs[0].outputs)}
    for index, (slim, whole) in enumerate(zip(graphs[0].tensors, graphs[1].tensors, strict=True)):
        assert fb.tensor_name(slim) == (fb.tensor_name(whole) if index in public else "")
    assert tflite.slim(int8) == int8


def test_slim_shares_equal_constants():
    table = RANDOM.normal(size=(16, 16)).astype(np.float32)
    model = keras.Sequential([keras.Input((16,)), layers.Dense(16), layers.Dense(16)])
    model.set_weights([table, np.zeros(16), table, np.zeros(16)])
    content = tflite.convert(model, "float32")
    assert len(content) < 2 * table.nbytes
    x = RANDOM.normal(size=(3, 16)).astype(np.float32)
    np.testing.assert_allclose(tflite.run(content, x), x @ table @ table, rtol=1e-4, atol=1e-4)


def test_buffers_start_at_multiples_of_16(int8):
    root = schema.Model.GetRootAs(int8, 0)
    buffers = [root.Buffers(i) for i in range(root.BuffersLength())]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert len(starts) > 5
    assert all(start % 16 == 0 for start in starts)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_truncated_files_are_refused(int8, data):
    length = data.draw(st.integers(0, len(int8) - 1))
    with pytest.raises(InputError):
        fb.parse(int8[:length])


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_are_refused(content):
    for whole in (content, content[:4] + fb.IDENTIFIER + content[8:]):
        with pytest.raises(InputError):
            fb.parse(whole)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused(int8, data):
    damaged = bytearray(int8)
    for _ in range(8):
        damaged[data.draw(st.integers(8, len(int8) - 1))] = data.draw(st.integers(0, 255))
    try:
        fb.pack(fb.parse(bytes(damaged)))
    except InputError:
        pass
    except (UnicodeDecodeError, TypeError, ValueError) as error:  # nothing else may come
        pytest.fail(f"{error!r}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.tflite"):
        tflite.audit(tmp_path / "nowhere.tflite")


def test_audit_counts_what_the_interpreter_lists(model, int8, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(int8)
    audit = tflite.audit(path)
    listed = [d["op_name"] for d in start(int8, xnnpack=False)._get_ops_details()]
    assert audit.operators == {name: listed.count(name) for name in sorted(set(listed))}
    assert audit.size_bytes == path.stat().st_size
    assert audit.full_integer and audit.float_operators == []
    assert "FLOAT32" not in audit.tensors
    assert str(audit).startswith("bytes ") and "CONV_2D" in str(audit)
    kernels = [v for v in model.trainable_variables if "kernel" in v.path]
    assert audit.parameters == sum(int(np.prod(k.shape)) for k in kernels)


def test_macs_are_those_of_the_layers(int8):
    conv = 5 * 5 * 8 * 3 * 3 * 3
    depthwise = 3 * 3 * 16 * 3 * 3
    grouped = 3 * 3 * 16 * 8
    transposed = 3 * 3 * 16 * 3 * 3 * 4
    dense = 4 * 5
    assert tflite.audit(int8).macs == conv + depthwise + grouped + transposed + dense


def test_audit_reads_sparsity_and_clusters_back():
    model = keras.Sequential([keras.Input((32,)), layers.Dense(8)])
    kernel = RANDOM.choice([-1.0, 0.0, 0.5, 0.25], size=(32, 8)).astype(np.float32)
    kernel[0] = 1.0
    model.set_weights([kernel, np.zeros(8)])
    x = RANDOM.normal(size=(32, 32)).astype(np.float32)
    for scheme in ("float32", "float16", "int8"):
        (weight,) = tflite.audit(tflite.convert(model, scheme, x)).weights
        assert weight.size == 256
        assert weight.nonzeros == np.count_nonzero(kernel)
        assert weight.distinct == 4
        assert weight.distinct_per_channel == 4
        assert weight.bytes == 256 * {"float32": 4, "float16": 2, "int8": 1}[scheme]


def test_float_operators_are_named(model):
    float_audit = tflite.audit(tflite.convert(model, "float32"))
    assert "CONV_2D" in float_audit.float_operators and not float_audit.full_integer


def test_delegated_operators_are_those_that_xnnpack_takes(model, int8):
    assert "CONV_2D" in tflite.audit(int8).delegated_operators
    # LiteRT has no XNNPACK kernels for 16-bit activations.
    wide = tflite.convert(model, "int16x8", IMAGES)
    assert tflite.audit(wide).delegated_operators == []


def test_run_quantizes_and_dequantizes(int8):
    engine = start(int8)
    scale, zero_point = engine.get_output_details()[0]["quantization"]
    codes = tflite.run_integers(int8, IMAGES)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(
        tflite.run(int8, IMAGES), (codes.astype(np.float32) - zero_point) * np.float32(scale)
    )
    with pytest.raises(InputError, match=r"\(n, 12, 12, 3\)"):
        tflite.run(int8, IMAGES[:, :4])


def test_noise_spans_the_range_of_the_input(int8):
    codes_used = noise(start(int8), 16)[0]
    scale, zero_point = start(int8).get_input_details()[0]["quantization"]
    codes = codes_used / scale + zero_point
    assert codes.min() < -120 and codes.max() > 120
    assert codes.min() >= -128 and codes.max() <= 127


def test_int4_is_unpacked():
    packed = np.array([0x1F, 0x87], dtype=np.uint8)  # low half first: -1, 1, 7, -8
    tensor = schema.TensorT(shape=np.array([4]), type=schema.TensorType.INT4, buffer=0)
    model = schema.ModelT(buffers=[schema.BufferT(data=packed)])
    np.testing.assert_array_equal(fb.data(model, tensor), [-1, 1, 7, -8])
