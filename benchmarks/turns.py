"""Processes that work in turns, so that all are timed under the same load, none beside another."""

import json
import os
import subprocess
import sys
import time

BATCH = 128
UNTIMED_STEPS = 20


def run(options, work, compare, table):
    """Does one side's work if this is its process; else compares and shows network by network."""
    if options.side:
        work(options)
        return 0
    results = {}
    for network in options.networks:
        results[network] = compare(network)
        print(table(network, results[network]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


def in_turns(sides):
    """Lets the processes work, one epoch at a time each, until all have a result."""
    while any(side.result is None for side in sides):
        for side in sides:
            if side.result is None:
                side.take_turn()


class Side:
    """A process that works while it has the turn: from a line on stdin to its next on stdout."""

    def __init__(self, name, command):
        self.name = name
        self.result = None
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def take_turn(self):
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")
        message = json.loads(line)
        if "epoch" in message:
            print(f"{self.name}: {message['epoch']}", file=sys.stderr)
        else:
            self.result = message
            self._process.communicate()


class Turn:
    """The worker's end of `Side`; made as soon as it has its first turn."""

    def __init__(self):
        # Whatever a library prints goes to stderr: stdout carries the messages alone.
        self._messages = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.wait()

    def wait(self):
        if not sys.stdin.readline():
            sys.exit(1)

    def hand_over(self, message):
        self._messages.write(json.dumps(message) + "\n")
        self._messages.flush()


def train(keras, turn, model, callbacks, data, title, epochs, rate, logits=True):
    """Trains in turns, epoch by epoch, and returns the processor seconds that each epoch took.

    Neighbours do not count in them, nor do an epoch's first steps, in which graphs are traced and
    compiled. Adam's learning rate falls linearly from `rate` to a tenth of it. logits: whether the
    model ends in them, and not in probabilities.
    """
    steps = -(-len(data[0]) // BATCH)
    timed = []

    class Turns(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == UNTIMED_STEPS:
                self.started = time.process_time()

        def on_epoch_end(self, epoch, logs=None):
            seconds = time.process_time() - self.started
            timed.append(seconds * steps / (steps - UNTIMED_STEPS - 1))
            progress = f"{title} {epoch + 1}/{epochs} {timed[-1]:.2f} s loss {logs['loss']:.4f}"
            turn.hand_over({"epoch": progress})
            turn.wait()

    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.PolynomialDecay(rate, epochs * steps, rate / 10)
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
        metrics=["accuracy"],
        jit_compile=False,  # XLA's convolutions are slower on processors
    )
    callbacks = [*callbacks, Turns()]
    model.fit(*data, batch_size=BATCH, epochs=epochs, callbacks=callbacks, verbose=0)
    return timed
