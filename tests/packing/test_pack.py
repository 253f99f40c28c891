"""Packed models: the same bytes back, few bytes, and a clear word about damaged ones."""

import io
import json
import lzma
import tracemalloc
import zipfile
import zlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfcompress as tfc
from tfcompress import archive, packing
from tfcompress.errors import InputError
from tfcompress.packing import container
from tfcompress.packing.coder import Decoder, Encoder
from tfcompress.packing.codings import entropy_bits, number
from tfcompress.tflite import flatbuffer as fb

layers = keras.layers
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    """Kernels with 90 % zeros and 6 other values."""
    model = keras.Sequential([keras.Input((64,)), layers.Dense(128, activation="relu")])
    model.add(layers.Dense(40))
    for layer in model.layers:
        kernel, bias = layer.get_weights()
        kernel = RANDOM.choice([0.0, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3], kernel.shape, p=_SHARES)
        kernel[0] = 0.3  # every output channel gets the same scale
        layer.set_weights([kernel, RANDOM.normal(size=bias.shape)])
    return model


_SHARES = [0.9] + 6 * [0.1 / 6]


@pytest.fixture(scope="module")
def files(model):
    x = RANDOM.normal(size=(32, 64)).astype(np.float32)
    return {scheme: tfc.convert(model, scheme, x) for scheme in ("float32", "float16", "int8")}


@pytest.fixture(scope="module")
def packed(files):
    return {scheme: tfc.pack(content) for scheme, content in files.items()}


@pytest.mark.parametrize("scheme", ["float32", "float16", "int8"])
def test_the_file_comes_back_and_is_smaller_than_by_xz(files, packed, scheme):
    assert tfc.unpack(packed[scheme]) == files[scheme]
    assert len(packed[scheme]) < 0.75 * len(lzma.compress(files[scheme], preset=9))


def test_independent_symbols_take_their_entropy(files, packed):
    """The weights are drawn one by one: no coder can do better, this one is within 6 %.

    Except the first input's, which are all the same and cost next to nothing.
    """
    report = packing.report(packed["int8"])
    graph = fb.parse(files["int8"])
    kernels = [fb.data(graph, t) for t in graph.subgraphs[0].tensors]
    sizes = {k.size: k for k in kernels if k is not None and k.dtype == np.int8}
    parts = [part for part in report.parts if part.name.endswith("kernel")]
    assert sorted(part.elements for part in parts) == sorted(sizes)
    for part in parts:
        values = sizes[part.elements]
        assert part.distinct == len(np.unique(values))
        assert part.entropy_bytes == np.ceil(entropy_bytes(values))
        bound = entropy_bytes(values[:, 1:])
        assert bound - 4 <= part.packed_bytes <= 1.06 * bound + 12
        assert part.coding == "indices"


def entropy_bytes(values):
    counts = np.unique(values, return_counts=True)[1]
    return -(counts * np.log2(counts / counts.sum())).sum() / 8


def test_columns_that_differ_are_learned():
    """Zeros that fill whole columns cost less than the entropy of single values."""
    kernel = RANDOM.choice([-1.0, 1.0], size=(300, 100)) * (RANDOM.random(300) < 0.2)[:, None]
    model = keras.Sequential([keras.Input((300,)), layers.Dense(100, use_bias=False)])
    model.set_weights([kernel])
    content = tfc.convert(model, "float32")
    (part,) = packing.report(tfc.pack(content)).parts
    assert part.packed_bytes < 0.65 * part.entropy_bytes
    assert part.packed_bytes > np.count_nonzero(kernel) / 8  # a bit for each sign


def test_the_report_adds_up(files, packed):
    report = packing.report(packed["int8"])
    assert report.bytes == len(files["int8"]) and report.packed_bytes == len(packed["int8"])
    assert report.bytes == report.structure_bytes + sum(part.bytes for part in report.parts)
    told = report.packed_structure_bytes + sum(part.packed_bytes for part in report.parts)
    assert told == report.packed_bytes
    assert "FULLY_CONNECTED kernel" in str(report) and f"{report.ratio:.2f}x" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["parts"][0]["bits_per_weight"] > 0


def test_scales_of_biases_are_told_by_those_of_kernels(packed):
    parts = {part.name: part for part in packing.report(packed["int8"]).parts}
    assert parts["0 FULLY_CONNECTED input 2 scales"].coding == "product"
    assert parts["0 FULLY_CONNECTED input 2 scales"].packed_bytes == 0


def test_keras_models_and_files(model, tmp_path):
    path = tmp_path / "model.keras"
    model.save(path)
    content = tfc.pack(path)
    assert tfc.unpack(content) == path.read_bytes()
    parts = packing.report(content).parts
    assert sum(part.elements for part in parts) >= 64 * 128 + 128 * 40
    assert len(content) < 0.75 * len(lzma.compress(path.read_bytes()))
    (tmp_path / "again.keras").write_bytes(tfc.unpack(tfc.pack(model)))
    again = keras.models.load_model(tmp_path / "again.keras")
    for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    model.save(tmp_path / "model.h5")
    assert tfc.unpack(tfc.pack(tmp_path / "model.h5")) == (tmp_path / "model.h5").read_bytes()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_in_npz(method):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive_file:
        member = io.BytesIO()
        np.save(member, RANDOM.choice([0.0, 0.5, 1.0], size=(50, 40)).astype(np.float32))
        archive_file.writestr("kernel.npy", member.getvalue())
    content = tfc.pack(file.getvalue())
    assert tfc.unpack(content) == file.getvalue()
    found = [part.elements for part in packing.report(content).parts]
    assert found == ([2000] if method == zipfile.ZIP_STORED else [])


@settings(max_examples=100)
@given(st.data())
def test_truncated_content_is_refused(packed, data):
    content = packed["int8"]
    with pytest.raises(InputError):
        tfc.unpack(content[: data.draw(st.integers(0, len(content) - 1))])


@settings(max_examples=100)
@given(st.data())
def test_a_changed_byte_is_refused(packed, data):
    content = bytearray(packed["int8"])
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InputError):
        tfc.unpack(bytes(content))


@settings(max_examples=30)
@given(st.data())
def test_forged_content_is_refused_or_harmless(files, packed, data):
    """Even where the outer checksum was made to fit, nothing else than the model comes out."""
    body = bytearray(packed["int8"][8:])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.one_of(st.integers(0, 40), st.integers(0, len(body) - 1)))
        body[place] ^= data.draw(st.integers(1, 255))
    forged = container.MAGIC + zlib.crc32(body).to_bytes(4, "big") + bytes(body)
    try:
        assert tfc.unpack(forged) == files["int8"]  # some bits at the very end say nothing
    except InputError as error:
        assert "corrupt" in str(error)


def test_absurd_lengths_are_refused():
    body = bytes([0]) + bytes(4) + number(1 << 40) + number(5) + number(5) + bytes(20)
    with pytest.raises(InputError, match="number that cannot be"):
        tfc.unpack(container.MAGIC + zlib.crc32(body).to_bytes(4, "big") + body)


def test_lengths_that_the_code_cannot_hold_take_no_memory():
    """A structure of 200 MB in 20 bytes: refused before there is room for it."""
    body = bytes([0]) + bytes(4) + number(200 << 20) + number(5) + number(199 << 20) + bytes(20)
    forged = container.MAGIC + zlib.crc32(body).to_bytes(4, "big") + body
    tracemalloc.start()
    with pytest.raises(InputError, match="corrupt: it ends too early"):
        tfc.unpack(forged)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_code_that_ends_in_zeros_is_read_again(byte):
    """Of ones alone the code is zeros; a decoder adds no more than a few."""
    data = np.full(300_000, byte, np.uint8)  # 106 bytes of code, more than a decoder adds
    encoder = Encoder()
    encoder.bytes(data, contexts=2)
    found = Decoder(encoder.content()).bytes(np.zeros_like(data), contexts=2)
    np.testing.assert_array_equal(found, data)
    assert 64 < encoder.position < 200


def test_other_input_is_refused(files, tmp_path):
    for wrong in (b"", b"text", b"PK\x03\x04 no archive", files["int8"][:400]):
        with pytest.raises(InputError):
            tfc.pack(wrong)
    with pytest.raises(InputError, match="must be a Keras model"):
        tfc.pack(3)
    with pytest.raises(InputError, match="another version"):
        tfc.unpack(b"TFC\x02" + bytes(50))
    with pytest.raises(InputError, match="must come from pack"):
        tfc.unpack(files["int8"])
    with pytest.raises(InputError, match="nowhere"):
        tfc.pack(tmp_path / "nowhere.tflite")


def test_the_command_packs_reports_and_unpacks(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.tflite").write_bytes(files["int8"])
    assert archive.main(["pack", "net.tflite", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    size = (tmp_path / "net.tflite.tfc").stat().st_size
    assert result["path"] == "net.tflite.tfc" and result["bytes_after"] == size
    assert archive.main(["report", "net.tflite.tfc"]) == 0
    assert "FULLY_CONNECTED kernel" in capsys.readouterr().out
    assert archive.main(["unpack", "net.tflite.tfc", "--output", "copy.tflite"]) == 0
    assert (tmp_path / "copy.tflite").read_bytes() == files["int8"]
    assert archive.main(["unpack", "net.tflite.tfc", "--output", "net.tflite.tfc"]) == 2
    assert (tmp_path / "net.tflite.tfc").stat().st_size == size
    assert archive.main(["unpack", "net.tflite"]) == 2
    assert archive.main(["pakc", "net.tflite"]) == 2
    assert "Did you mean 'pack'" in capsys.readouterr().err
    assert archive.main(["pack"]) == 2


def test_entropy_of_even_and_single_values():
    assert entropy_bits(np.array([1, 2, 3, 4], np.int8)) == 2.0
    assert entropy_bits(np.array([7, 7, 7], np.int32)) == 0.0
