"""Reference models that papers and benchmarks compress, with fresh weights."""

from collections.abc import Callable, Sequence

import keras

from tfcompress.errors import InputError, require

layers = keras.layers
Shape = tuple[int, ...]


def lenet300(shape: Shape = (28, 28, 1), classes: int = 10) -> keras.Model:
    """LeNet-300-100 (LeCun 1998): 266,610 parameters on 28x28 images."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Flatten(name="flatten"),
            layers.Dense(300, activation="relu", name="dense1"),
            layers.Dense(100, activation="relu", name="dense2"),
            layers.Dense(classes, activation="softmax", name="dense3"),
        ],
        name="lenet300",
    )


def lenet5(shape: Shape = (28, 28, 1), classes: int = 10) -> keras.Model:
    """Caffe's LeNet-5, which Deep Compression compresses: 431,080 parameters on 28x28 images.

    The convolutions are followed by ReLU, as in most later versions; Caffe's had none there.
    """
    return keras.Sequential(
        [
            keras.Input(_image(shape)),
            layers.Conv2D(20, 5, activation="relu", name="conv1"),
            layers.MaxPooling2D(name="pool1"),
            layers.Conv2D(50, 5, activation="relu", name="conv2"),
            layers.MaxPooling2D(name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(500, activation="relu", name="dense1"),
            layers.Dense(classes, activation="softmax", name="dense2"),
        ],
        name="lenet5",
    )


def digits_cnn(shape: Shape = (8, 8, 1), classes: int = 10) -> keras.Model:
    """A small CNN without BatchNorm for scikit-learn's 8x8 digits: 21,842 parameters."""
    return keras.Sequential(
        [
            keras.Input(_image(shape)),
            layers.Conv2D(16, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv2"),
            layers.MaxPooling2D(name="pool1"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv3"),
            layers.MaxPooling2D(name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(56, activation="relu", name="dense1"),
            layers.Dense(classes, activation="softmax", name="dense2"),
        ],
        name="digits_cnn",
    )


def resnet8(shape: Shape = (32, 32, 3), classes: int = 10) -> keras.Model:
    """MLPerf Tiny's ResNet-8 for CIFAR-10 (Banbury 2021): 78,666 parameters, pixels 0..255."""
    inputs = keras.Input(_image(shape))
    x = _conv(inputs, 16, 3, "stem")
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    for stack, (filters, stride) in enumerate([(16, 1), (32, 2), (64, 2)], start=1):
        x = _residual(x, filters, stride, f"stack{stack}")
    x = layers.AveragePooling2D((x.shape[1], x.shape[2]), name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    outputs = layers.Dense(
        classes, activation="softmax", kernel_initializer="he_normal", name="dense"
    )(x)
    return keras.Model(inputs, outputs, name="resnet8")


def dscnn(shape: Shape = (49, 10, 1), classes: int = 12) -> keras.Model:
    """MLPerf Tiny's DS-CNN for keyword spotting (Zhang 2017): 24,908 parameters."""
    inputs = keras.Input(_image(shape))
    x = _conv(inputs, 64, (10, 4), "conv", stride=2)
    x = layers.ReLU(name="conv_relu")(layers.BatchNormalization(name="conv_bn")(x))
    x = layers.Dropout(0.2, name="dropout1")(x)
    for block in range(1, 5):
        x = layers.DepthwiseConv2D(
            3, padding="same", depthwise_regularizer=_l2(), name=f"depthwise{block}"
        )(x)
        x = layers.BatchNormalization(name=f"depthwise{block}_bn")(x)
        x = layers.ReLU(name=f"depthwise{block}_relu")(x)
        x = _conv(x, 64, 1, f"pointwise{block}")
        x = layers.BatchNormalization(name=f"pointwise{block}_bn")(x)
        x = layers.ReLU(name=f"pointwise{block}_relu")(x)
    x = layers.Dropout(0.4, name="dropout2")(x)
    x = layers.AveragePooling2D((shape[0] // 2, shape[1] // 2), name="pool")(x)
    outputs = layers.Dense(classes, activation="softmax", name="dense")(layers.Flatten()(x))
    return keras.Model(inputs, outputs, name="dscnn")


def mobilenet(shape: Shape = (224, 224, 3), classes: int = 1000, width: float = 1.0) -> keras.Model:
    """MobileNetV1 (Howard 2017) from keras.applications; `width` scales its channels."""
    require(width > 0, "width of mobilenet", "must be positive", width=width)
    return keras.applications.MobileNet(
        input_shape=_image(shape), alpha=width, classes=classes, weights=None
    )


def mobilenet_sparse(
    shape: Shape = (224, 224, 3), classes: int = 1000, width: float = 1.0
) -> keras.Model:
    """MobileNetV1 as XNNPACK's sparse kernels need it (`tflite.sparse_inference_report`).

    Its strided convolutions are padded by 1 on each side, where MobileNetV1 pads below and to the
    right, and it ends in pooling and Dense; pruned to over 2/3 zeros in its 1x1 convolutions
    it runs sparse on ARM. `width` scales its channels; images have 3.
    """
    require(width > 0, "width of mobilenet_sparse", "must be positive", width=width)
    require(_image(shape)[2] == 3, "shape of mobilenet_sparse", "must have 3 channels", shape=shape)
    inputs = keras.Input(shape)
    x = layers.ZeroPadding2D(1, name="stem_pad")(inputs)
    x = layers.Conv2D(_scaled(32, width), 3, strides=2, use_bias=False, name="stem")(x)
    x = _normalized(x, "stem")
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    blocks += 5 * [(512, 1)] + [(1024, 2), (1024, 1)]
    for block, (filters, stride) in enumerate(blocks, start=1):
        if stride > 1:
            x = layers.ZeroPadding2D(1, name=f"depthwise{block}_pad")(x)
        x = layers.DepthwiseConv2D(
            3,
            strides=stride,
            padding="valid" if stride > 1 else "same",
            use_bias=False,
            name=f"depthwise{block}",
        )(x)
        x = _normalized(x, f"depthwise{block}")
        filters = _scaled(filters, width)
        x = layers.Conv2D(filters, 1, use_bias=False, name=f"pointwise{block}")(x)
        x = _normalized(x, f"pointwise{block}")
    x = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = layers.Dropout(0.001, name="dropout")(layers.Flatten(name="flatten")(x))
    outputs = layers.Dense(classes, activation="softmax", name="dense")(x)
    return keras.Model(inputs, outputs, name="mobilenet_sparse")


REFERENCES: dict[str, Callable[..., keras.Model]] = {
    function.__name__: function
    for function in (lenet300, lenet5, digits_cnn, resnet8, dscnn, mobilenet, mobilenet_sparse)
}


def reference(
    spec: str, shape: Sequence[int] | None = None, classes: int | None = None
) -> keras.Model:
    """Returns the reference called `name` or `name:width`, for samples of `shape`."""
    name, colon, width = spec.partition(":")
    arguments: dict[str, object] = {}
    if shape is not None:
        arguments["shape"] = tuple(int(size) for size in shape)
    if classes is not None:
        arguments["classes"] = int(classes)
    if colon:
        if name not in ("mobilenet", "mobilenet_sparse"):
            raise InputError(f"Model {name} has no width. Received: {spec}")
        try:
            arguments["width"] = float(width)
        except ValueError:
            raise InputError(f"Width of {name} must be a number. Received: {spec}") from None
    try:
        return REFERENCES[name](**arguments)
    except InputError:
        raise
    except ValueError as error:  # Keras: the images are too small for the pooling
        line = str(error).strip().splitlines()[0]
        raise InputError(f"Model {name} cannot be built for samples of {shape}: {line}") from None


def _image(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise InputError(
            f"A convolutional model needs samples (height, width, channels). Received: {shape}"
        )
    return shape


def _scaled(filters: int, width: float) -> int:
    return max(1, int(filters * width))


def _normalized(x, name: str):
    return layers.ReLU(6.0, name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))


def _l2() -> keras.regularizers.Regularizer:
    return keras.regularizers.L2(1e-4)


def _conv(x, filters: int, size, name: str, stride: int = 1):
    return layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same",
        kernel_initializer="he_normal",
        kernel_regularizer=_l2(),
        name=name,
    )(x)


def _residual(x, filters: int, stride: int, name: str):
    y = _conv(x, filters, 3, f"{name}_conv1", stride)
    y = layers.ReLU(name=f"{name}_relu1")(layers.BatchNormalization(name=f"{name}_bn1")(y))
    y = layers.BatchNormalization(name=f"{name}_bn2")(_conv(y, filters, 3, f"{name}_conv2"))
    if stride > 1:
        x = _conv(x, filters, 1, f"{name}_shortcut", stride)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))
