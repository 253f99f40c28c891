import base64
import html.parser
import re

import pytest

from tfcompress.errors import InputError
from tfcompress.report import render, write_html

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Cells of tables by the table's id, images by their text; unbalanced tags are errors."""

    def __init__(self, source):
        super().__init__()
        self.tables, self.images, self.tags, self.open, self.table = {}, {}, [], [], None
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = self.tables.setdefault(attributes["id"], [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.table[-1].append("")
        elif tag == "img":
            self.images[attributes["alt"]] = attributes["src"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.table[-1][-1] += data


def test_the_page_holds_every_table_of_the_record(record, weights):
    page = Page(render(record, *weights))
    assert ["bytes", "4,000", "1,600", "2.50x less"] in page.tables["comparison"]
    assert ["median latency", "0.02 ms", "–", "–"] in page.tables["comparison"]
    assert [row[0] for row in page.tables["stages"]] == ["stage", "train", "prune", "export"]
    assert {len(row) for row in page.tables["stages"]} == {9}
    assert ["prune", "depthwise/kernel", "too few weights & <i>no</i> spare"] in page.tables[
        "skipped"
    ]
    assert [row[0] for row in page.tables["checks"]] == ["passed", "FAILED"]
    assert ["operators", "1 x FULLY_CONNECTED, 1 x SOFTMAX"] in page.tables["audit"]
    assert ["full integer", "yes"] in page.tables["audit"]
    assert ["operators on floats", "none"] in page.tables["audit"]
    assert ["run by XNNPACK", "2 x FULLY_CONNECTED"] in page.tables["audit"]
    kernel = ["0 FULLY_CONNECTED", "10 x 60", "INT8", "600", "200", "3", "2", "600"]
    assert page.tables["tensors"][1] == kernel
    assert page.tables["tensors"][2][4:] == ["–", "–", "–", "40"]
    assert page.tables["latency"][1][:2] == ["baseline.tflite", "0.02 ms"]
    assert page.tables["latency"][1][4:6] == ["1", "0.9 to 1.125"]
    assert page.tables["latency"][2][:2] == ["model.tflite", "–"]
    deflated = record["stages"][1]["measures"]["kernels"][0]["storage"]["deflated_bytes"]
    assert page.tables["kernels"][1][7] == f"{deflated:,}"


def test_images_lie_inside_the_page(record, weights):
    source = render(record, *weights)
    page = Page(source)
    assert "Weights of dense0/kernel" in page.images
    assert "Accuracy and sparsity over training" in page.images
    assert "Estimated time per operator of baseline.tflite" in page.images
    for data in page.images.values():
        assert base64.b64decode(data.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert not re.search(r"(src|href)=\"(?!data:)", source)
    assert "/home/user" not in source


def test_text_of_the_user_is_escaped(record, weights):
    before, after = weights
    name = '"><script>alert(2)</script>'
    page = Page(render(record, before | {name: before["dense0/kernel"]}, after))
    assert "script" not in page.tags and "b" not in page.tags and "i" not in page.tags
    assert f"Weights of {name}" in page.images


def test_equal_records_give_equal_pages(record, weights):
    assert render(record, *weights) == render(record, *weights)


@pytest.mark.parametrize("nothing", [{}, {"stages": None, "before": None, "latency": None}])
def test_an_empty_record_is_a_page_of_dashes(nothing):
    page = Page(render(nothing))
    assert all(row[1:] == ["–", "–", "–"] for row in page.tables["comparison"][1:])
    assert all(row[1] == "–" for row in page.tables["audit"])
    assert page.images == {}


def test_the_file_is_written_whole_or_not_at_all(record, tmp_path):
    write_html(tmp_path / "report.html", record)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(record)
    with pytest.raises(InputError, match="cannot be written"):
        write_html(tmp_path / "report.html" / "below", record)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_html(tmp_path / "folder", record)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "report.html"]
