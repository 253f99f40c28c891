import io

import pytest
from rich.console import Console

from tfcompress.report import render, tables


def printed(record, width=140):
    console = Console(file=io.StringIO(), width=width)
    tables.print_table(record, console)
    return console.file.getvalue()


def row(text, label):
    return next(line.split() for line in text.splitlines() if line.strip().startswith(label))


def test_the_table_shows_what_the_record_holds(record):
    text = printed(record)
    shown = ["98.00", "%", "97.50", "%", "-0.50", "points"]
    assert row(text, "accuracy of the .tflite")[4:] == shown
    assert row(text, "bytes")[1:] == ["4,000", "1,600", "2.50x", "less"]
    assert row(text, "MACs")[1:] == ["600", "600", "same"]
    assert row(text, "prune")[1:3] == ["2", "–"]
    assert "Compression: 4.9x" in text
    assert "passed: accuracy drop: 0.005 (limit 0.01)" in text
    assert "FAILED: size: 1,600 (limit 1,000)" in text
    assert "Skipped depthwise/kernel: too few weights" in text


def test_clusters_that_end_empty_are_counted_in_table_and_page(record):
    assert "without a weight" not in printed(record) + render(record)
    record["stages"][1]["history"]["empty_clusters"] = [3, 0]
    assert "without a weight" not in printed(record) + render(record)
    record["stages"][0]["history"]["empty_clusters"] = [0, 6]
    for shown in (printed(record), render(record)):
        assert "train: 6 clusters kept without a weight" in shown


def test_markup_in_names_is_printed_not_obeyed(record):
    assert "digits <b>[bold]</b>" in printed(record)


def test_the_tables_fit_into_80_columns(record):
    record["stages"][1]["name"] = "quantize_aware"
    record["stages"][1]["measures"]["nonzeros"] = 1_234_567
    text = printed(record, width=80)
    assert row(text, "quantize_aware")[3:6] == ["1,234,567", "62.83", "%"]
    assert "…" not in text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_missing_measure_is_a_dash(record, value):
    record["after"]["size_bytes"] = value
    assert row(printed(record), "bytes")[1:] == ["4,000", "–", "–"]
    assert row(printed(record), "median latency")[2:] == ["0.02", "ms", "–", "–"]


def test_an_empty_record_is_all_dashes():
    lines = tables.compare({})
    assert {(line.before, line.after, line.change) for line in lines} == {("–", "–", "–")}
    assert "accuracy" in printed({})


def test_growth_is_called_more(record):
    record["after"]["size_bytes"] = 8000
    assert row(printed(record), "bytes")[3:] == ["2.00x", "more"]


def test_where_time_comes_from(record):
    assert "integer arithmetic alone" in tables.explain_time(record)
    record["after"]["macs"] = 300
    assert "what was removed" in tables.explain_time(record)
    record["after"]["macs"] = None
    assert tables.explain_time(record) == ""


def test_stage_titles_match_their_columns(record):
    lines = tables.stages(record)
    assert [line.name for line in lines] == ["train", "prune", "export"]
    assert len(tables.STAGE_TITLES) == len(vars(lines[0]))
    stored = record["stages"][1]["measures"]["storage"]["deflated_bytes"]
    assert lines[1].deflated == f"{stored:,}"
    assert lines[2].deflated == "–"
