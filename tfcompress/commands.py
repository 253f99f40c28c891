"""What the commands share: flags, help, errors as one line, JSON.

A command is a module with flags and one function; `run` does the rest:

    FLAGS = commands.flags("json", "unsafe")               # a FlagValues of its own
    absl.flags.DEFINE_integer("runs", 200, "Timed runs.", flag_values=FLAGS)

    def latency(options, arguments):                       # options.runs, options.json, ...
        ...                                                # raises InputError: status 2
        return commands.Outcome(result, text, problems)

    def main(argv=None):
        return commands.run(latency, argv, FLAGS, __doc__)

    if __name__ == "__main__":
        sys.exit(main())

`main(["a.tflite", "--runs", "50"])` may be called any number of times in one process: each call
parses into a copy of the flags. The command's docstring is its `--help`, the flags follow it.
"""

import contextlib
import copy
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags as absl_flags

from tfcompress.errors import InputError

DONE, CHECK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_SHARED = {
    "json": "Print one JSON document on stdout and nothing else.",
    "unsafe": "Load models that carry Python code (Lambda layers, pickles): it will be executed.",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command found: `result` for `--json`, `text` for a reader, failed checks.

    Each of `problems` goes to stderr as `failed: ...` and makes the exit status 1.
    """

    result: Any
    text: str
    problems: Sequence[str] = ()


def flags(*shared: str) -> absl_flags.FlagValues:
    """Returns a command's own flag values with the `shared` flags ("json", "unsafe") defined."""
    values = absl_flags.FlagValues()
    for name in shared:
        absl_flags.DEFINE_boolean(name, False, _SHARED[name], flag_values=values)
    return values


def run(
    command: Callable[[absl_flags.FlagValues, list[str]], Outcome],
    argv: Sequence[str] | None,
    values: absl_flags.FlagValues,
    usage: str | None,
) -> int:
    """Runs `command(options, arguments)` and returns its exit status.

    0: done and verified. 1: done, but a check failed. 2: bad input, one line on stderr.
    130: interrupted. `argv` is without the program's name; None means `sys.argv[1:]`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if any(word.split("=")[0] in ("--help", "-help", "-h", "--helpfull") for word in argv):
        print(help_text(values, usage or ""))
        return DONE
    try:
        options, arguments = _parse(argv, values)
        silent = "json" in options and options.json
        with contextlib.redirect_stdout(sys.stderr) if silent else contextlib.nullcontext():
            outcome = command(options, arguments)
        print(json.dumps(outcome.result, indent=2) if silent else outcome.text, flush=True)
    except InputError as error:
        return _fail(str(error), BAD_INPUT)
    except OSError as error:
        return _fail(_describe(error), BAD_INPUT)
    except KeyboardInterrupt as interrupt:
        return _fail(
            f"interrupted; {interrupt}." if str(interrupt) else "interrupted.", INTERRUPTED
        )
    for problem in outcome.problems:
        print(f"failed: {problem}", file=sys.stderr)
    return CHECK_FAILED if outcome.problems else DONE


def help_text(values: absl_flags.FlagValues, usage: str) -> str:
    """Returns the usage text followed by the command's own flags."""
    lines = [usage.strip(), "", "Flags:"]
    for name in sorted(values):
        flag = values[name]
        if name != flag.name:
            continue
        word = name.replace("_", "-")
        form = f"--{word}" if flag.boolean else f"--{word}={_metavar(flag)}"
        default = "" if flag.boolean or flag.value in (None, []) else f" [{flag.value}]"
        lines.append(f"  {form}\n      {flag.help}{default}")
    lines.append("  --help\n      Show this text.")
    return "\n".join(lines)


def _parse(
    argv: list[str], values: absl_flags.FlagValues
) -> tuple[absl_flags.FlagValues, list[str]]:
    options = copy.deepcopy(values)
    options.set_gnu_getopt(True)  # flags may follow the arguments
    try:
        arguments = options(["command", *_underscored(argv)])[1:]
    except absl_flags.Error as error:
        raise InputError(f"{_one_line(str(error)).rstrip('.')}. See --help.") from None
    return options, arguments


def _underscored(argv: list[str]) -> list[str]:
    """Returns --keep-names=x as --keep_names=x, up to a "--": absl knows no hyphens in flags."""
    end = argv.index("--") if "--" in argv else len(argv)
    words = [word.partition("=") for word in argv[:end]]
    return [
        f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else word
        for word, (name, equals, value) in zip(argv, words, strict=False)
    ] + argv[end:]


def _metavar(flag: absl_flags.Flag) -> str:
    options = getattr(flag.parser, "enum_values", None)
    if options:
        return "|".join(options)
    return {"int": "N", "float": "X"}.get(flag.flag_type(), "TEXT")


def _describe(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}."


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _fail(message: str, status: int) -> int:
    print(f"error: {_one_line(message)}", file=sys.stderr, flush=True)
    return status
