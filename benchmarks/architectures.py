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
