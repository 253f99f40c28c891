"""The layers that `quantization_coverage.py` quantizes: each alone and in the usual pairs.

`LAYERS[name]` is (shapes of the inputs, build); `build(layers, *inputs)` returns the output with
the layers of whichever Keras is handed in (`keras.layers`, `tf_keras.layers`).
"""

IMAGE, SEQUENCE, VECTOR, VOLUME = (8, 8, 4), (10, 8), (16,), (4, 4, 4, 3)
_POOLINGS = ("MaxPooling", "AveragePooling")
TOKENS = "tokens"  # an input of ten integers below 20


def _one(shape, kind, *arguments, **options):
    return (shape,), lambda layers, x: getattr(layers, kind)(*arguments, **options)(x)


def _two(shape, kind, **options):
    return (shape, shape), lambda layers, x, y: getattr(layers, kind)(**options)([x, y])


def _chain(shape, *steps):
    """`steps` are names of layers with their arguments: ("Dense", 4)."""

    def build(layers, x):
        for kind, *arguments in steps:
            options = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
            x = getattr(layers, kind)(*arguments, **options)(x)
        return x

    return (shape,), build


def _convolutions():
    return {
        "Dense": _one(VECTOR, "Dense", 8),
        "Dense of a sequence": _one(SEQUENCE, "Dense", 8),
        "EinsumDense": _one(SEQUENCE, "EinsumDense", "abc,cd->abd", output_shape=(None, 6)),
        "EinsumDense to heads": _one(
            SEQUENCE, "EinsumDense", "abc,cde->abde", output_shape=(None, 2, 4), bias_axes="de"
        ),
        "EinsumDense from heads": _one(
            (10, 2, 4), "EinsumDense", "abcd,cde->abe", output_shape=(None, 8), bias_axes="e"
        ),
        "Conv1D": _one(SEQUENCE, "Conv1D", 6, 3, padding="causal"),
        "Conv1D dilated": _one(SEQUENCE, "Conv1D", 6, 3, dilation_rate=2),
        "Conv2D": _one(IMAGE, "Conv2D", 6, 3, strides=2, padding="same"),
        "Conv2D in groups": _one(IMAGE, "Conv2D", 6, 3, groups=2),
        "Conv2D dilated": _one(IMAGE, "Conv2D", 6, 3, dilation_rate=2),
        "Conv3D": _one(VOLUME, "Conv3D", 4, 2),
        "DepthwiseConv1D": _one(SEQUENCE, "DepthwiseConv1D", 3),
        "DepthwiseConv2D": _one(IMAGE, "DepthwiseConv2D", 3),
        "SeparableConv1D": _one(SEQUENCE, "SeparableConv1D", 6, 3),
        "SeparableConv2D": _one(IMAGE, "SeparableConv2D", 6, 3),
        "Conv1DTranspose": _one(SEQUENCE, "Conv1DTranspose", 6, 3, strides=2),
        "Conv2DTranspose": _one(IMAGE, "Conv2DTranspose", 6, 3, strides=2, padding="same"),
        "Conv3DTranspose": _one(VOLUME, "Conv3DTranspose", 4, 2),
        "Embedding": _one(TOKENS, "Embedding", 20, 8),
    }


def _activations():
    names = "relu relu6 elu selu softplus softsign silu gelu sigmoid hard_sigmoid tanh softmax "
    names += "leaky_relu exponential hard_silu mish log_softmax celu glu hard_tanh tanh_shrink "
    names += "log_sigmoid hard_shrink soft_shrink squareplus sparse_plus sparsemax linear"
    alone = {f"Activation {n}": _one(IMAGE, "Activation", n) for n in names.split()}
    alone |= {
        "ReLU": _one(IMAGE, "ReLU"),
        "ReLU up to 6": _one(IMAGE, "ReLU", 6.0),
        "ReLU up to 1": _one(IMAGE, "ReLU", 1.0),
        "ReLU with a slope": _one(IMAGE, "ReLU", None, 0.1),
        "ReLU with a threshold": _one(IMAGE, "ReLU", None, 0.0, 0.5),
        "LeakyReLU": _one(IMAGE, "LeakyReLU"),
        "PReLU": _one(IMAGE, "PReLU", shared_axes=[1, 2], alpha_initializer="ones"),
        "ELU": _one(IMAGE, "ELU"),
        "ELU with alpha": _one(IMAGE, "ELU", 0.5),
        "Softmax": _one(SEQUENCE, "Softmax"),
        "Softmax over steps": _one(SEQUENCE, "Softmax", axis=1),
    }
    return alone


def _shapes():
    return {
        "Flatten": _one(IMAGE, "Flatten"),
        "Reshape": _one(IMAGE, "Reshape", (16, 16)),
        "Permute": _one(IMAGE, "Permute", (3, 1, 2)),
        "RepeatVector": _one(VECTOR, "RepeatVector", 3),
        "Cropping1D": _one(SEQUENCE, "Cropping1D", 1),
        "Cropping2D": _one(IMAGE, "Cropping2D", 1),
        "Cropping3D": _one(VOLUME, "Cropping3D", 1),
        "ZeroPadding1D": _one(SEQUENCE, "ZeroPadding1D", 1),
        "ZeroPadding2D": _one(IMAGE, "ZeroPadding2D", 1),
        "ZeroPadding3D": _one(VOLUME, "ZeroPadding3D", 1),
        "UpSampling1D": _one(SEQUENCE, "UpSampling1D"),
        "UpSampling2D": _one(IMAGE, "UpSampling2D"),
        "UpSampling2D bilinear": _one(IMAGE, "UpSampling2D", interpolation="bilinear"),
        "UpSampling3D": _one(VOLUME, "UpSampling3D"),
        "Resizing": _one(IMAGE, "Resizing", 12, 12),
        "Resizing nearest": _one(IMAGE, "Resizing", 16, 16, interpolation="nearest"),
        "CenterCrop": _one(IMAGE, "CenterCrop", 6, 6),
        "Identity": _one(IMAGE, "Identity"),
        "Dropout": _one(IMAGE, "Dropout", 0.5),
        "SpatialDropout1D": _one(SEQUENCE, "SpatialDropout1D", 0.5),
        "SpatialDropout2D": _one(IMAGE, "SpatialDropout2D", 0.5),
        "SpatialDropout3D": _one(VOLUME, "SpatialDropout3D", 0.5),
        "GaussianNoise": _one(IMAGE, "GaussianNoise", 0.5),
        "GaussianDropout": _one(IMAGE, "GaussianDropout", 0.5),
        "AlphaDropout": _one(IMAGE, "AlphaDropout", 0.5),
        "ActivityRegularization": _one(IMAGE, "ActivityRegularization", 0.1),
        "Masking": _one(SEQUENCE, "Masking"),
    }


def _pooling():
    shapes = {"1D": SEQUENCE, "2D": IMAGE, "3D": VOLUME}
    kinds = {"MaxPooling": [2], "AveragePooling": [2]} | {"Global" + k: [] for k in _POOLINGS}
    return {
        f"{kind}{n}": _one(shape, f"{kind}{n}", *arguments)
        for kind, arguments in kinds.items()
        for n, shape in shapes.items()
    } | {"AveragePooling2D of the whole map": _one(IMAGE, "AveragePooling2D", IMAGE[:2])}


def _merging():
    kinds = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")
    return {kind: _two(IMAGE, kind) for kind in kinds} | {
        "Dot": _two(VECTOR, "Dot", axes=1),
        "Dot normalized": _two(VECTOR, "Dot", axes=1, normalize=True),
        "Dot of sequences": _two(SEQUENCE, "Dot", axes=2),
    }


def _normalization():
    return {
        "BatchNormalization": _one(IMAGE, "BatchNormalization"),
        "LayerNormalization": _one(SEQUENCE, "LayerNormalization"),
        "LayerNormalization of images": _one(IMAGE, "LayerNormalization", epsilon=1e-6),
        "RMSNormalization": _one(SEQUENCE, "RMSNormalization"),
        "GroupNormalization": _one(IMAGE, "GroupNormalization", 2),
        "UnitNormalization": _one(SEQUENCE, "UnitNormalization"),
        "Normalization": _one(VECTOR, "Normalization", mean=0.5, variance=2.0),
        "Rescaling": _one(IMAGE, "Rescaling", 1 / 3.0, -0.1),
        "SpectralNormalization": (
            (VECTOR,),
            lambda layers, x: layers.SpectralNormalization(layers.Dense(8))(x),
        ),
    }


def _attention():
    def multi_head(layers, x):
        return layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x)

    def cross(layers, x, y):
        return layers.MultiHeadAttention(2, 4, value_dim=6, output_shape=5)(x, y)

    return {
        "MultiHeadAttention": ((SEQUENCE,), multi_head),
        "MultiHeadAttention, crossed": ((SEQUENCE, (6, 8)), cross),
        "MultiHeadAttention, causal": (
            (SEQUENCE,),
            lambda layers, x: layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True),
        ),
        "GroupQueryAttention": (
            (SEQUENCE,),
            lambda layers, x: layers.GroupQueryAttention(4, 4, 2)(x, x),
        ),
        "Attention": _two(SEQUENCE, "Attention", use_scale=True),
        "AdditiveAttention": _two(SEQUENCE, "AdditiveAttention"),
    }


def _recurrent():
    cases = {kind: _one(SEQUENCE, kind, 6) for kind in ("SimpleRNN", "LSTM", "GRU")}
    cases |= {
        f"{kind} of all steps": _one(SEQUENCE, kind, 6, return_sequences=True)
        for kind in ("SimpleRNN", "LSTM", "GRU")
    }
    return cases | {
        "GRU, reset before": _one(SEQUENCE, "GRU", 6, reset_after=False),
        "LSTM backwards": _one(SEQUENCE, "LSTM", 6, go_backwards=True),
        "RNN of stacked cells": (
            (SEQUENCE,),
            lambda layers, x: layers.RNN([layers.LSTMCell(6), layers.GRUCell(5)])(x),
        ),
        "Bidirectional": (
            (SEQUENCE,),
            lambda layers, x: layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x),
        ),
        "TimeDistributed": (
            ((5, 8, 8, 4),),
            lambda layers, x: layers.TimeDistributed(layers.Conv2D(6, 3, activation="relu"))(x),
        ),
        "ConvLSTM2D": _one((3, 6, 6, 2), "ConvLSTM2D", 4, 3, padding="same"),
    }


def _pairs():
    conv, norm, same = ("Conv2D", 6, 3), ("BatchNormalization",), {"padding": "same"}
    pairs = {
        f"Conv2D, {layer}": _chain(IMAGE, conv, (layer, *arguments))
        for layer, *arguments in (
            ("ReLU",), ("ReLU", 6.0), ("LeakyReLU",), ("PReLU",), ("ELU",), ("MaxPooling2D",),
            ("AveragePooling2D", 2), ("LayerNormalization",),
        )
    }  # fmt: skip
    activations = ("relu", "silu", "gelu", "hard_silu", "elu", "selu", "softplus", "mish")
    pairs |= {
        f"Conv2D({activation})": _chain(IMAGE, ("Conv2D", 6, 3, {"activation": activation}))
        for activation in activations
    }
    before = ("Conv1D", "SeparableConv1D", "DepthwiseConv1D", "Conv1DTranspose")
    pairs |= {
        f"{kind}, BatchNormalization, ReLU": _chain(
            SEQUENCE, (kind, 3) if "Depthwise" in kind else (kind, 6, 3), norm, ("ReLU",)
        )
        for kind in before
    }
    before = ("Conv2D", "SeparableConv2D", "DepthwiseConv2D", "Conv2DTranspose")
    pairs |= {
        f"{kind}, BatchNormalization, ReLU": _chain(
            IMAGE, (kind, 3) if "Depthwise" in kind else (kind, 6, 3), norm, ("ReLU",)
        )
        for kind in before
    }
    return pairs | {
        "Dense, BatchNormalization": _chain(VECTOR, ("Dense", 8), norm),
        "Dense, BatchNormalization, ReLU": _chain(VECTOR, ("Dense", 8), norm, ("ReLU",)),
        "Dense(relu), Dropout, Dense(softmax)": _chain(
            VECTOR,
            ("Dense", 8, {"activation": "relu"}),
            ("Dropout", 0.3),
            ("Dense", 4, {"activation": "softmax"}),
        ),
        "BatchNormalization, ReLU, Conv2D": _chain(IMAGE, norm, ("ReLU",), conv),
        "ZeroPadding2D, Conv2D": _chain(IMAGE, ("ZeroPadding2D",), conv),
        "Embedding, GlobalAveragePooling1D": _chain(
            TOKENS, ("Embedding", 20, 8), ("GlobalAveragePooling1D",), ("Dense", 4)
        ),
        "Embedding, LSTM": _chain(TOKENS, ("Embedding", 20, 8), ("LSTM", 6), ("Dense", 4)),
        "Add, ReLU": (
            (IMAGE, IMAGE),
            lambda layers, x, y: layers.ReLU()(
                layers.Add()([layers.Conv2D(4, 3, **same)(x), layers.Conv2D(4, 3, **same)(y)])
            ),
        ),
        "Concatenate, Conv2D": (
            (IMAGE, IMAGE),
            lambda layers, x, y: layers.Conv2D(4, 1)(
                layers.Concatenate()([layers.Conv2D(4, 1)(x), layers.Conv2D(4, 1)(y)])
            ),
        ),
        "squeeze and excitation": ((IMAGE,), _squeeze_and_excitation),
        "ConvNeXt block": ((IMAGE,), _convnext_block),
        "transformer block": ((SEQUENCE,), _transformer_block),
    }


def _squeeze_and_excitation(layers, x):
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(2, 1, activation="relu")(gate)
    return layers.Multiply()([x, layers.Conv2D(4, 1, activation="hard_sigmoid")(gate)])


def _convnext_block(layers, x):
    y = layers.LayerNormalization(epsilon=1e-6)(layers.DepthwiseConv2D(3, padding="same")(x))
    return layers.Add()([x, layers.Dense(4)(layers.Dense(16, activation="gelu")(y))])


def _transformer_block(layers, x):
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(y, y)])
    y = layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x))
    return layers.Add()([x, layers.Dense(8)(y)])


LAYERS = {
    **_convolutions(),
    **_activations(),
    **_shapes(),
    **_pooling(),
    **_merging(),
    **_normalization(),
    **_attention(),
    **_recurrent(),
    **_pairs(),
}
