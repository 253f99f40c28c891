"""The networks of the benchmarks, built with whichever Keras is handed in (`keras`, `tf_keras`)."""


def lenet300(keras, seed=0):
    """LeNet-300-100 of Han et al. 2015 for 28x28x1 images: 266,610 parameters, logits."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.layers.InputLayer((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(300, activation="relu", name="fc1"),
            keras.layers.Dense(100, activation="relu", name="fc2"),
            keras.layers.Dense(10, name="fc3"),
        ]
    )


def lenet5(keras, seed=0):
    """LeNet-5 of Han et al. 2015 (Caffe's) for 28x28x1 images: 431,080 parameters, logits."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.layers.InputLayer((28, 28, 1)),
            keras.layers.Conv2D(20, 5, activation="relu", name="conv1"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(50, 5, activation="relu", name="conv2"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(500, activation="relu", name="fc1"),
            keras.layers.Dense(10, name="fc2"),
        ]
    )


def lenet5_unbiased(keras, seed=0):
    """LeNet-5 whose convolutions have a BatchNorm instead of a bias, logits."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.InputLayer((28, 28, 1))]
    for number, filters in enumerate((20, 50), 1):
        layers += [
            keras.layers.Conv2D(filters, 5, use_bias=False, name=f"conv{number}"),
            keras.layers.BatchNormalization(name=f"norm{number}"),
            keras.layers.ReLU(name=f"relu{number}"),
            keras.layers.MaxPooling2D(name=f"pool{number}"),
        ]
    layers += [
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(500, activation="relu", name="fc1"),
        keras.layers.Dense(10, name="fc2"),
    ]
    return keras.Sequential(layers)


def resnet8(keras, seed=0, outer=(16, 32, 64), inner=(16, 32, 64)):
    """MLPerf Tiny's ResNet-8 for 32 x 32 x 3 images and ten classes: 78,666 parameters, logits.

    outer: channels of the sums of the three stages; inner: between a stage's two convolutions.
    """
    keras.utils.set_random_seed(seed)

    def convolved(x, filters, size, strides=1):
        options = {"padding": "same", "kernel_initializer": "he_normal"}
        return keras.layers.Conv2D(filters, size, strides, **options)(x)

    def normalized(x):
        return keras.layers.BatchNormalization()(x)

    inputs = keras.Input((32, 32, 3))
    x = keras.layers.ReLU()(normalized(convolved(inputs, outer[0], 3)))
    for filters, between, strides in zip(outer, inner, (1, 2, 2), strict=True):
        y = keras.layers.ReLU()(normalized(convolved(x, between, 3, strides)))
        y = normalized(convolved(y, filters, 3))
        x = convolved(x, filters, 1, strides) if strides > 1 else x
        x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(8)(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def mobilenet(keras, seed=0, width=0.25, size=96):
    """MobileNetV1 of the given width for `size` x `size` x 3 images and ten classes, logits."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 3))
    x = inputs
    channels = [32, 64, 128, 128, 256, 256] + [512] * 6 + [1024, 1024]
    strides = [2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    for block, (filters, stride) in enumerate(zip(channels, strides, strict=True)):
        options = {"padding": "same", "use_bias": False}
        if block == 0:
            x = keras.layers.Conv2D(int(filters * width), 3, strides=stride, **options)(x)
        else:
            x = keras.layers.DepthwiseConv2D(3, strides=stride, **options)(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.ReLU(6.0)(x)
            x = keras.layers.Conv2D(int(filters * width), 1, **options)(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU(6.0)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))
