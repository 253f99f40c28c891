"""Inner tensors read one after another: those of the whole file, each operator run once."""

import keras
import numpy as np
import pytest

from tfcompress import tflite
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import prefixes, replay

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=["float32", "int8"])
def content(request):
    """A file with a branch around two convolutions, of which one reads the file's input again."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    first = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(4, 3, padding="same")(first)
    x = layers.Add()([x, first, layers.Conv2D(4, 1)(inputs)])
    x = layers.GlobalAveragePooling2D()(x)
    return tflite.convert(keras.Model(inputs, layers.Dense(2)(x)), request.param, IMAGES)


def truth(content):
    """Returns by tensor its real numbers on each image, as the whole file computes them."""
    engine = tflite.interpreter.start(content, preserve=True)
    (given,) = engine.get_input_details()
    found = {}
    for image in IMAGES:
        engine.set_tensor(given["index"], tflite.interpreter.quantize(image[None], given))
        engine.invoke()
        for detail in engine.get_tensor_details():
            values = tflite.interpreter.dequantize(engine.get_tensor(detail["index"]), detail)
            found.setdefault(detail["index"], []).append(values)
    return found


def read_all(content):
    """Returns by operator what its first input is, read in order, and how many operators ran."""
    model = fb.parse(content)
    operators = model.subgraphs[0].operators
    player, run = replay.Replay([IMAGES]), []
    original = prefixes.part

    def part(model, needed, inputs, outputs):
        run.extend(needed)
        return original(model, needed, inputs, outputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "part", part)
        found = {
            int(operator.inputs[0]): list(
                player.read(
                    model,
                    operators[:number],
                    int(operator.inputs[0]),
                    {int(i) for o in operators[number:] for i in o.inputs},
                )
            )
            for number, operator in enumerate(operators)
        }
    return found, len(run), len(operators)


def test_tensors_are_those_of_the_whole_file_and_operators_run_once(content):
    found, run, number = read_all(content)
    wanted = truth(content)
    for tensor, values in found.items():
        np.testing.assert_allclose(values, wanted[tensor], rtol=1e-5, atol=1e-5)
    assert run == number - 1  # nobody reads the last one's outputs


def test_without_room_operators_run_again(content, monkeypatch):
    monkeypatch.setattr(replay, "_MOST_BYTES", 0)
    found, run, number = read_all(content)
    wanted = truth(content)
    for tensor, values in found.items():
        np.testing.assert_allclose(values, wanted[tensor], rtol=1e-5, atol=1e-5)
    assert run > 2 * number


def test_a_tensor_that_was_not_kept_is_found_again(content):
    model = fb.parse(content)
    operators = model.subgraphs[0].operators
    player = replay.Replay([IMAGES])
    last, first = int(operators[-1].outputs[0]), int(operators[0].outputs[0])
    wanted = truth(content)
    for tensor in (last, first, last):
        found = list(player.read(model, operators, tensor, set()))
        np.testing.assert_allclose(found, wanted[tensor], rtol=1e-5, atol=1e-5)
