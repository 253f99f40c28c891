"""Training of ResNet-8 on processors: batches with soft labels, and kernels that are fast there."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tfcompress.data.batches import Augment, steps_per_epoch, training_batches

CLASSES = 10
BATCH = 128
SEED = 0
AUGMENT = Augment(shift=4, flip=True)
VERSIONS = 10  # of each image, whose soft labels a teacher gives


def taught_batches(
    images, teachers, folder, first=0, seed=SEED, mixup=False, steps=None, augment=AUGMENT
):
    """Returns endless batches from epoch `first` on: images, and (n, 1 + CLASSES): the class, then
    the probabilities that the teachers, `.keras` files, give each class.

    Teachers see `VERSIONS` epochs of `steps`, which are gone through again and again; what they
    say is computed once and kept in the folder. `mixup` mixes the images in pairs.
    """
    steps = steps or steps_per_epoch(images, BATCH)
    batches = training_batches(images, BATCH, VERSIONS, 0, seed, augment)
    words = [f"seed{seed}"] if augment else [f"seed{seed}", "plain"]
    if mixup:
        words.append("mixup")
        batches = mixed(batches, seed)
    total = VERSIONS * steps
    found = [
        _soft_labels(path, batches, total, folder / ("-".join([path.stem, *words]) + ".npy"))
        for path in teachers
    ]
    soft = tf.data.Dataset.from_tensor_slices(geometric_mean(found))
    pairs = tf.data.Dataset.zip(batches, soft).map(lambda pair, p: (pair[0], beside(pair[1], p)))
    return pairs.repeat().skip(first % VERSIONS * steps)


def _soft_labels(teacher, batches, steps, path):
    """Returns the teacher's probabilities for each batch, from the file if it is there."""
    if not path.exists():
        model = to_train(keras.models.load_model(teacher, compile=False))
        found = model.predict(batches, steps=steps, verbose=0)
        part = path.with_suffix(".part.npy")
        np.save(part, found.reshape(steps, BATCH, CLASSES))
        part.rename(path)
    return np.load(path)


def beside(y, probabilities):
    """Returns the classes (n,) and the probabilities (n, CLASSES) as one (n, 1 + CLASSES)."""
    return tf.concat([tf.reshape(tf.cast(y, tf.float32), (-1, 1)), probabilities], 1)


def with_truth(x, y):
    """Returns the images, and the classes beside the truth, which takes a teacher's place."""
    return x, beside(y, tf.one_hot(y, CLASSES))


def mixed(batches, seed):
    """Returns the batches with each image mixed with another, by a share from U(0, 1) (mixup)."""

    def mix(number, pair):
        x, y = pair
        share = tf.random.stateless_uniform((len(x), 1, 1, 1), tf.stack([seed, number]))
        return share * x + (1 - share) * x[::-1], y

    return batches.enumerate().map(mix)


def geometric_mean(probabilities):
    """Returns the probabilities (..., CLASSES) that the mean of several teachers' logits gives."""
    logits = sum(np.log(np.maximum(p, 1e-9)) for p in probabilities) / len(probabilities)
    found = np.exp(logits)
    return found / found.sum(-1, keepdims=True)


def soft_label_loss(share, temperature):
    """Returns (1 - share) * cross-entropy + share * T^2 * KL(teacher || student) at T (Hinton)."""

    def softened(probabilities):
        logits = keras.ops.log(keras.ops.clip(probabilities, 1e-7, 1.0))
        return keras.ops.softmax(logits / temperature)

    def loss(y, outputs):
        hard = keras.losses.sparse_categorical_crossentropy(y[:, 0], outputs)
        if not share:
            return hard
        soft = keras.losses.kl_divergence(softened(y[:, 1:]), softened(outputs))
        return (1 - share) * hard + share * temperature**2 * soft

    return loss


def accuracy(y, outputs):
    return keras.metrics.sparse_categorical_accuracy(y[:, 0], outputs)


@contextlib.contextmanager
def convolutions_in_bfloat16(on):
    """While it is open, functions that TensorFlow traces convolve in bfloat16, if `on` says so."""
    word = "auto_mixed_precision_onednn_bfloat16"
    tf.config.optimizer.set_experimental_options({word: on})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({word: False})


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """The same function by TensorFlow's fused kernel, in training about three times as fast."""

    def call(self, x, training=None, mask=None):
        train = bool(training) and self.trainable
        kept = (tf.constant([]),) * 2 if train else (self.moving_mean, self.moving_variance)
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.convert_to_tensor(kept[0]),
            variance=tf.convert_to_tensor(kept[1]),
            epsilon=self.epsilon,
            is_training=train,
        )
        if train:
            for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + new * (1 - self.momentum))
        return y


def to_train(model):
    """Returns a copy that trains faster, whose weights `take_back` brings back.

    Its channels are padded with zeros to multiples of 16, which processors' convolutions are made
    for. Such a channel stays zero by itself: where kernels, gamma and beta are zero, so are all
    gradients.
    """

    def clone(layer):
        kind, config = type(layer), layer.get_config()
        if kind is keras.layers.BatchNormalization:
            kind = FusedBatchNormalization
        if "filters" in config:
            config["filters"] = -(-config["filters"] // 16) * 16
        return kind.from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    for wide, variable in zip(copy.weights, model.weights, strict=True):
        w = keras.ops.convert_to_numpy(variable)
        wide.assign(np.pad(w, [(0, n - m) for n, m in zip(wide.shape, w.shape, strict=True)]))
    return copy


def take_back(model, copy):
    """Gives the model the weights of its copy `to_train`."""
    for variable, wide in zip(model.weights, copy.weights, strict=True):
        variable.assign(keras.ops.convert_to_numpy(wide)[tuple(map(slice, variable.shape))])
