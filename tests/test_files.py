import os

import pytest

from tfcompress.errors import InputError
from tfcompress.files import written_whole


def write(path, content):
    with written_whole(path) as file:
        file.write(content)


def test_write_is_whole_or_nothing(tmp_path):
    target = tmp_path / "new" / "a.bin"
    write(target, b"one")
    write(target, b"two")
    assert target.read_bytes() == b"two"
    assert os.listdir(target.parent) == ["a.bin"]
    with pytest.raises(InputError, match="cannot be written"):
        write(target / "below_a_file", b"three")
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "new", b"four")
    assert sorted(os.listdir(tmp_path)) == ["new"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_is_bad_input(tmp_path, monkeypatch):
    def full(handle, mode):
        os.close(handle)
        return open("/dev/full", mode)

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(InputError, match="No space left"):
        write(tmp_path / "a.bin", b"content")
    assert os.listdir(tmp_path) == []


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    write(tmp_path / "a.bin", b"old")
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "a.bin") as file:
        file.write(b"new")
        1 / 0  # noqa: B018
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]
