import os
import pathlib
import re

import nbclient
import nbformat
import pytest

COLAB = pathlib.Path(__file__).parent.parent / "colab"


NAMES = sorted(path.name for path in COLAB.glob("*.ipynb"))


@pytest.fixture(scope="module")
def cells():
    return executed("quickstart.ipynb")


def executed(name):
    """Returns the code cells of a notebook, executed as it stands from the folder it lies in."""
    notebook = nbformat.read(COLAB / name, as_version=4)
    kernel = {"PYTHONPATH": os.pathsep.join([str(COLAB.parent), os.environ.get("PYTHONPATH", "")])}
    client = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(COLAB)}}
    )
    client.execute(env={**os.environ, **kernel})
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cells):
    outputs = [output for cell in cells for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")


def numbers(text, label):
    row = re.search(rf"^{label} +(.*)$", text, re.M)[1]
    return [float(value.replace(",", "")) for value in row.split()]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_committed_without_outputs(name):
    notebook = nbformat.read(COLAB / name, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_the_quickstart_ends_in_a_small_full_integer_file(cells):
    text = printed(cells)
    assert re.search(r"full integer +yes", text)
    before, after = numbers(text, "test accuracy")
    assert before >= 0.95 and after >= before - 0.02
    before, after = numbers(text, "deflated bytes")
    assert after < before / 8
    assert "the loaded model gives the same outputs: True" in text


def test_the_quickstart_prunes_and_clusters(cells):
    sparsity, values = re.search(r"([\d.]+)% zeros, at most (\d+) values", printed(cells)).groups()
    assert float(sparsity) == pytest.approx(80, abs=0.1)
    assert 2 <= int(values) <= 16


def test_the_quickstart_draws(cells):
    images = [
        output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(images) == 4


def test_fewer_channels_are_less_arithmetic_at_the_same_accuracy():
    text = printed(executed("fewer_channels.ipynb"))
    before, after = numbers(text, "test accuracy")
    assert before >= 0.95 and after >= before - 0.03
    before, after = numbers(text, "multiply-accumulates")
    assert after <= before / 2
    assert float(re.search(r"largest change of an output: (\S+)", text)[1]) < 1e-5
    assert re.search(r"^inside +\d+ +[2-9]", text, re.M)
