import errno
import json
import os

import pytest
from absl import flags

from tfcompress import commands
from tfcompress.errors import InputError

FLAGS = commands.flags("json")
flags.DEFINE_boolean("keep_names", False, "Keep names.", flag_values=FLAGS)
flags.DEFINE_integer("runs", 200, "Timed runs.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_enum("xnnpack", "true", ["true", "false"], "Whether to delegate.", flag_values=FLAGS)


def main(argv, command=None):
    def echo(options, arguments):
        print("progress")
        return commands.Outcome({"runs": options.runs, "files": arguments}, f"{options.runs} runs")

    return commands.run(command or echo, argv, FLAGS, "Counts runs.\n\nExample:\n  count a.tflite")


def test_json_is_alone_on_stdout(capsys):
    assert main(["a", "--runs", "5", "b", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"runs": 5, "files": ["a", "b"]}
    assert "progress" in captured.err


def test_flags_of_one_call_do_not_reach_the_next(capsys):
    main(["--runs=7"])
    main([])
    assert capsys.readouterr().out.split("\n")[:-1] == [
        "progress",
        "7 runs",
        "progress",
        "200 runs",
    ]


@pytest.mark.parametrize(
    "argv", [["--runz", "5"], ["--runs", "0"], ["--runs", "x"], ["--xnnpack=2"]]
)
def test_a_wrong_flag_is_one_line_and_status_2(argv, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (InputError("clusters of KMeans must be\n at least 2."), 2, "must be at least 2."),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out"), 2, "out: No space left"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_one_line(error, status, text, capsys):
    def command(options, arguments):
        raise error

    assert main([], command) == status
    captured = capsys.readouterr()
    assert text in captured.err and captured.err.count("\n") == 1


def test_flags_are_written_with_hyphens(capsys):
    def command(options, arguments):
        return commands.Outcome([options.keep_names, *arguments], "done")

    assert main(["--keep-names", "--json", "a-b", "--", "--c-d"], command) == 0
    assert json.loads(capsys.readouterr().out) == [True, "a-b", "--c-d"]
    main(["--help"])
    assert "--keep-names" in capsys.readouterr().out


def test_a_failed_check_is_status_1_and_named(capsys):
    def command(options, arguments):
        return commands.Outcome({}, "done", ["SOFTMAX is float"])

    assert main([], command) == 1
    assert "failed: SOFTMAX is float" in capsys.readouterr().err


def test_help_shows_usage_and_our_flags_only(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "Counts runs." in shown and "--xnnpack=true|false" in shown and "--runs=N" in shown
    assert "only_check_args" not in shown and "flagfile" not in shown
