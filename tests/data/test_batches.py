import numpy as np
import pytest
import tensorflow as tf

from tfcompress import data
from tfcompress.data import images as folder_images
from tfcompress.data.batches import (
    Augment,
    augmented,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from tfcompress.errors import InputError

from .folders import write_folder

PAIR = tf.constant([3, 4], tf.int64)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def collected(batches):
    return [(x.numpy(), y.numpy()) for x, y in batches]


def test_resumed_epochs_are_those_of_the_whole_run(digits):
    augment = Augment(shift=1, flip=True, rotate=5, zoom=0.1)
    whole = collected(training_batches(digits, 100, 3, seed=5, augment=augment))
    rest = collected(training_batches(digits, 100, 3, first_epoch=1, seed=5, augment=augment))
    steps = steps_per_epoch(digits, 100)
    assert len(whole) == 3 * steps and len(rest) == 2 * steps
    for (x, y), (expected_x, expected_y) in zip(rest, whole[steps:], strict=True):
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)


def test_an_epoch_shows_each_image_once_and_epochs_differ(digits):
    batches = collected(training_batches(digits, 100, 2, seed=1))
    steps = steps_per_epoch(digits, 100)
    epochs = [np.concatenate([x for x, _ in batches[i * steps : (i + 1) * steps]]) for i in (0, 1)]
    assert len({image.tobytes() for image in epochs[0]}) == 1200
    assert (epochs[0] != epochs[1]).any()
    other = collected(training_batches(digits, 100, 1, seed=2))
    assert (other[0][0] != batches[0][0]).any()


def test_labels_stay_with_their_images(digits):
    label_of = {
        image.tobytes(): label
        for image, label in zip(digits.prepare(digits.x_train), digits.y_train, strict=True)
    }
    for x, y in collected(training_batches(digits, 64, 1)):
        assert all(label_of[image.tobytes()] == label for image, label in zip(x, y, strict=True))


def test_evaluation_shows_all_in_order(digits):
    batches = collected(evaluation_batches(digits, "validation", 100))
    expected = list(digits.batches("validation", 100))
    assert len(batches) == len(expected) == 2
    for (x, y), (expected_x, expected_y) in zip(batches, expected, strict=True):
        np.testing.assert_allclose(x, expected_x, rtol=1e-6)
        np.testing.assert_array_equal(y, expected_y)


def test_few_images_make_one_batch(digits):
    ((x, _),) = collected(training_batches(digits, 5000, 1))
    assert len(x) == len(digits.x_train)


def test_shift_moves_whole_pixels_and_fills_with_zeros():
    images = np.zeros((200, 5, 7, 1), np.uint8)
    images[:, 2, 3] = 9
    moved = augmented(tf.constant(images), Augment(shift=2), PAIR).numpy()
    places = {tuple(np.argwhere(image[..., 0])[0]) for image in moved}
    assert places == {(r, c) for r in range(5) for c in range(1, 6)}
    assert (moved.sum(axis=(1, 2, 3)) == 9).all()


def test_flip_turns_about_half():
    images = np.tile(np.arange(4, dtype=np.float32)[None, None, :, None], (400, 2, 1, 1))
    turned = augmented(tf.constant(images), Augment(flip=True), PAIR).numpy()[:, 0, 0, 0] == 3
    assert 150 < turned.sum() < 250


def test_rotation_and_zoom_keep_the_centre():
    images = np.zeros((50, 7, 7, 1), np.float32)
    images[:, 3, 3] = 1.0
    images[:, 3, 5] = 0.5
    changed = augmented(tf.constant(images), Augment(rotate=30, zoom=0.2), PAIR).numpy()
    np.testing.assert_allclose(changed[:, 3, 3], 1.0, atol=1e-5)
    assert len({image.tobytes() for image in changed}) == 50


def test_images_decoded_on_the_fly_train_the_same(tmp_path, monkeypatch):
    source = write_folder(tmp_path)
    whole = collected(training_batches(data.load(source), 3, 2))
    monkeypatch.setattr(folder_images, "MEMORY_LIMIT_BYTES", 0)
    lazy = collected(training_batches(data.load(source), 3, 2))
    for (x, y), (expected_x, expected_y) in zip(lazy, whole, strict=True):
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)


def test_bad_values():
    for arguments in ({"shift": -1}, {"rotate": 200}, {"zoom": 1.0}):
        with pytest.raises(InputError, match="of augment must be"):
            Augment(**arguments)
