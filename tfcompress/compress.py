"""Runs a recipe: from a Keras 3 model to a small, verified, measured .tflite file.

    python -m tfcompress.compress RECIPE.yaml [--data SOURCE] [--model MODEL] [--output DIR]
        [--set KEY=VALUE ...] [--json] [--unsafe]

    python -m tfcompress.compress configs/digits.yaml --set stages.1.prune.end=0.9

The recipe names a model, data and the stages that train and compress (examples in configs/).
DIR then holds model.keras, model.tflite, baseline.tflite (before compression, float32),
recipe.yaml (with every default), report.json, report.html and manifest.json.

A run that was interrupted, even by kill -9, goes on where it was when the same command is given
again, and ends with the same files.

Exit status: 0 done and verified; 1 done, but a check of the recipe failed; 2 bad input.
"""

import io
import sys
from collections.abc import Sequence

from tfcompress import commands  # first: it keeps TensorFlow's start quiet

# isort: split

from absl import flags
from rich.console import Console

from tfcompress import pipeline, report
from tfcompress.errors import InputError

FLAGS = commands.flags("json", "unsafe")
flags.DEFINE_string(
    "data",
    None,
    "Data source instead of the recipe's: digits, npz:FILE, images:FOLDER, keras:NAME or "
    "python:MODULE:FUNCTION.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "model",
    None,
    "Model instead of the recipe's: a file, python:MODULE:FUNCTION or a built-in name.",
    flag_values=FLAGS,
)
flags.DEFINE_string("output", None, "Folder for the files. [runs/RECIPE]", flag_values=FLAGS)
flags.DEFINE_multi_string(
    "set",
    [],
    "KEY=VALUE that replaces a key of the recipe; stages count from 0, values are YAML, the flag "
    "may be repeated: --set stages.1.cluster.clusters=32",
    flag_values=FLAGS,
)


def compress(options: flags.FlagValues, arguments: list[str]) -> commands.Outcome:
    if len(arguments) != 1:
        raise InputError(f"compress takes one recipe, a YAML file. Received: {arguments}")
    try:
        result = pipeline.run_recipe(
            arguments[0],
            output=options.output,
            data=options.data,
            model=options.model,
            overrides=options.set,
            unsafe=options.unsafe,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it was") from None
    text = io.StringIO()
    report.print_table(result.record, Console(file=text, width=100))
    text.write(f"Written to {result.output}/")
    return commands.Outcome(
        {"output": str(result.output), **result.record}, text.getvalue(), result.problems
    )


def main(argv: Sequence[str] | None = None) -> int:
    return commands.run(compress, argv, FLAGS, __doc__)


if __name__ == "__main__":
    sys.exit(main())
