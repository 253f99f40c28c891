"""Channels of a layer, clustered by their feature maps."""

import keras
import numpy as np
import pytest

import tfcompress as tfc


@pytest.fixture(scope="module")
def model():
    """Three kinds of channels: each kernel is there several times, a little changed."""
    made = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(9, 3, name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="head"),
        ]
    )
    rng = np.random.default_rng(0)
    kinds = np.repeat(rng.normal(size=(3, 3, 2, 3)), 3, axis=-1)
    conv = made.get_layer("conv")
    conv.kernel.assign(kinds + 0.01 * rng.normal(size=kinds.shape))
    return made


@pytest.mark.filterwarnings("error:The structure of `inputs`")
def test_like_channels_fall_into_one_cluster(model):
    x = np.random.default_rng(1).normal(size=(20, 6, 6, 2)).astype("float32")
    found = tfc.cluster_features(model, "conv", x, {"kmeans": {"clusters": 3}})
    assert [len(set(found.labels[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
    assert len(set(found.labels)) == 3
    assert found.silhouette > 0.9
    assert "9 channels in 3 clusters" in str(found)
    assert len(found.plot().axes) == 1


def test_bad_input_is_one_line(model):
    x = np.zeros((4, 6, 6, 2), np.float32)
    with pytest.raises(tfc.InputError, match="Did you mean 'conv'"):
        tfc.cluster_features(model, "comv", x)
    with pytest.raises(tfc.InputError, match="must be finite"):
        tfc.cluster_features(model, "conv", x + np.nan)
