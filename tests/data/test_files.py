"""Outputs appear complete under their name or not at all, and replace nothing."""

import errno
import gzip
import os

import pytest

from vanilla_transformer.data.files import new_folder, new_output, partial_path
from vanilla_transformer.errors import UserError


@pytest.mark.parametrize("binary", [False, True])
def test_a_file_appears_when_it_is_complete(tmp_path, binary):
    path = tmp_path / "out.txt"
    with new_output(path, binary=binary) as file:
        file.write("eins\nzwei ü\n".encode() if binary else "eins\nzwei ü\n")
        file.flush()
        assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    assert path.read_bytes() == "eins\nzwei ü\n".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("binary", [False, True])
def test_a_name_that_ends_in_gz_makes_a_gzip_file(tmp_path, binary):
    with new_output(tmp_path / "out.txt.gz", binary=binary) as file:
        file.write("ü\n".encode() if binary else "ü\n")
    assert gzip.decompress((tmp_path / "out.txt.gz").read_bytes()) == "ü\n".encode()


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt(), RuntimeError()])
def test_an_error_leaves_no_file(tmp_path, error):
    with pytest.raises(type(error)), new_output(tmp_path / "out.txt") as file:
        file.write("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_a_partial_file_where_it_is_wanted(tmp_path):
    path = tmp_path / "out.txt"
    with pytest.raises(KeyboardInterrupt), new_output(path, keep_partial=True) as file:
        file.write("half\n")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [partial_path(path)] == [tmp_path / "out.txt.part"]
    assert partial_path(path).read_text() == "half\n"
    with (
        pytest.raises(UserError, match=r"out\.txt\.part holds an unfinished output"),
        new_output(path, keep_partial=True),
    ):
        pass
    assert partial_path(path).read_text() == "half\n"


def test_nothing_that_exists_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "out.txt"
    for hard_links in (True, False):
        if not hard_links:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
        with pytest.raises(UserError, match="out.txt exists already; name a new one"), new_output(path) as file:
            file.write("new")
            path.write_text("written by another program meanwhile")
        with pytest.raises(UserError, match="out.txt exists already"), new_output(path):
            pass
        assert path.read_text() == "written by another program meanwhile"
        path.unlink()
        with new_output(path) as file:
            file.write("new")
        assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
        path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already"), new_output(path):
        pass


def test_a_file_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "no" / "out.txt", tmp_path / "file" / "out.txt"):
        with pytest.raises(UserError, match=r"can't write the output file .*out\.txt: .* director.*; check the path"):
            with new_output(path):
                pass
    with pytest.raises(UserError, match=r"out\.txt: No space left on device; free some space"):
        with new_output(tmp_path / "out.txt"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_appears_when_it_is_complete(tmp_path, existing):
    folder = tmp_path / "above" / "model"
    if existing:
        folder.mkdir(parents=True)
    with new_folder(folder, "model") as partial:
        (partial / "config.json").write_text("{}")
        (partial / "sub").mkdir()
        (partial / "sub" / "weights").write_text("1")
        assert not (folder / "config.json").exists()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "above",
        "above/model",
        "above/model/config.json",
        "above/model/sub",
        "above/model/sub/weights",
    ]


@pytest.mark.parametrize("existing", [False, True])
def test_an_error_leaves_no_folder(tmp_path, existing):
    folder = tmp_path / "above" / "model"
    if existing:
        folder.mkdir(parents=True)
    before = list(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="disk is full; free some space"), new_folder(folder, "model") as partial:
        (partial / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "disk is full")
    assert list(tmp_path.rglob("*")) == before


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    (tmp_path / "file").touch()
    for folder in ("model", "file"):
        with pytest.raises(UserError, match=f"{folder} already exists .*; give another folder for the average"):
            with new_folder(tmp_path / folder, "average"):
                pass
    with pytest.raises(UserError, match="can't write into .*file/model: Not a directory"):
        with new_folder(tmp_path / "file" / "model", "average"):
            pass
    with pytest.raises(UserError, match="already exists"), new_folder(tmp_path / "late", "average"):
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "theirs").touch()
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert names == ["file", "late", "late/theirs", "model", "model/mine"]
