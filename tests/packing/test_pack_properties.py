"""Over random models and schemes: what was packed comes back.

TFCOMPRESS_EXAMPLES=100 searches longer, in other places each time.
"""

import os

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tfcompress as tfc
from tests.structured.random_graphs import models
from tfcompress import packing
from tfcompress.packing import codings
from tfcompress.packing.coder import Decoder, Encoder

SEARCH = int(os.environ.get("TFCOMPRESS_EXAMPLES", "0"))
DTYPES = (np.int8, np.int16, np.int32, np.int64)


def examples(count):
    return settings(
        max_examples=SEARCH or count,
        derandomize=not SEARCH,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def arrays(draw):
    """Few values or many, zeros or none, in rows of some length."""
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    dtype, size = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 700))
    limits = np.iinfo(dtype)
    table = random.integers(limits.min, limits.max, draw(st.integers(1, 400)), dtype, endpoint=True)
    values = random.choice(table, size)
    values[random.random(size) < draw(st.sampled_from([0.0, 0.5, 0.95]))] = draw(st.integers(-1, 1))
    return values, draw(st.integers(1, 60))


@examples(60)
@given(arrays())
def test_every_coding_gives_the_values_back(case):
    values, columns = case
    for coding in codings.candidates(values):
        encoder = Encoder()
        coding.code(encoder, values, columns)
        told = codings.Reader(codings.written(coding, values.dtype))
        read = codings.CODINGS[told.number(len(codings.CODINGS))].read(told, values.dtype)
        assert read == coding and told.rest() == b""
        try:
            code = encoder.content()
        except OverflowError:
            continue
        found = read.code(Decoder(code), np.zeros_like(values), columns)
        np.testing.assert_array_equal(found, values)
        assert found.dtype == values.dtype


@examples(4)
@given(models(most=4), st.sampled_from(["float32", "float16", "dynamic", "keras"]))
def test_random_models_come_back(tmp_path_factory, model, scheme):
    path = tmp_path_factory.mktemp("packed") / "model.keras"
    if scheme == "keras":
        model.save(path)
    else:
        path.write_bytes(tfc.convert(model, scheme))
    content = tfc.pack(path)
    assert tfc.unpack(content) == path.read_bytes()
    assert len(content) < path.stat().st_size
    assert packing.report(content).packed_bytes == len(content)
