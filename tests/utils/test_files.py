from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from memlayers.utils import files
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.files import (
    atomic_directory,
    atomic_write_bytes,
    atomic_write_text,
    check_output_directory,
    check_output_file,
    exchange,
    read_text,
)


def _full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writes_utf8_makes_parents_and_leaves_nothing_else(tmp_path: Path):
    target = tmp_path / "a" / "b" / "text.txt"
    atomic_write_text(target, "Țolici\n")
    assert target.read_bytes() == "Țolici\n".encode()
    assert [path.name for path in target.parent.iterdir()] == ["text.txt"]


def test_keeps_the_mode_of_the_old_file_and_obeys_the_umask(tmp_path: Path):
    target = tmp_path / "f"
    old = os.umask(0o027)
    try:
        atomic_write_text(target, "1")
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        target.chmod(0o600)
        atomic_write_text(target, "2")
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
    finally:
        os.umask(old)


def test_writes_through_a_link(tmp_path: Path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    atomic_write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "f"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", _full_disk)
    with pytest.raises(WorkError, match="No space left"):
        atomic_write_text(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_write_takes_its_parents_away_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", _full_disk)
    with pytest.raises(WorkError):
        atomic_write_bytes(tmp_path / "a" / "b" / "f", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_file_beyond_the_limit_is_the_works_failure(tmp_path: Path):
    code = f"""
import resource
from memlayers.utils.errors import WorkError
from memlayers.utils.files import atomic_write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic_write_bytes({str(tmp_path / "big")!r}, b"x" * 5000)
except WorkError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", ["directory", "file/child", "file/child/grandchild", "x" * 300])
def test_an_impossible_path_is_bad_input(tmp_path: Path, bad: str):
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        atomic_write_text(tmp_path / bad, "text")
    assert str(caught.value).startswith(f"{tmp_path / bad}: ")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="no /dev/null")
def test_a_device_is_not_replaced(tmp_path: Path):
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(InputError, match="not a regular file"):
        atomic_write_text(tmp_path / "link", "text")
    assert Path("/dev/null").is_char_device()


def test_a_directory_appears_whole(tmp_path: Path):
    target = tmp_path / "new" / "out"
    with atomic_directory(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "f").write_text("x")
        assert not target.exists()
    assert (target / "sub" / "f").read_text() == "x"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), FileNotFoundError(2, "no", "in.txt")])
def test_a_directory_whose_block_fails_never_appears(tmp_path: Path, error: BaseException):
    with pytest.raises(type(error)) as caught, atomic_directory(tmp_path / "a" / "out") as temporary:
        (temporary / "f").write_text("x")
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (28)"),
    ],
)
def test_a_disk_full_inside_the_block_is_the_works_failure(tmp_path: Path, error: Exception):
    with pytest.raises(WorkError, match="free some space"), atomic_directory(tmp_path / "out"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_is_filled(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as temporary:
        (temporary / "f").write_text("x")
    assert (tmp_path / "out" / "f").exists()


def test_replace_swaps_a_full_directory(tmp_path: Path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("")
    with pytest.raises(InputError, match="not empty"), atomic_directory(target):
        pytest.fail("the block must not run")
    with atomic_directory(target, replace=True) as temporary:
        (temporary / "new").write_text("")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_swap_puts_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("")
    rename, calls = os.rename, []

    def second_fails(source: Path, to: Path) -> None:
        calls.append(to)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, to)

    monkeypatch.setattr(files, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(WorkError), atomic_directory(target, replace=True) as temporary:
        (temporary / "new").write_text("")
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_check_output_directory(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "f").write_text("")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    check_output_directory(tmp_path / "empty")
    check_output_directory(tmp_path / "not" / "yet" / "there")
    check_output_directory(tmp_path / "full", replace=True)
    for bad, why in (("file", "not a directory"), ("full", "not empty"), ("file/out", "Not a directory")):
        with pytest.raises(InputError, match=why):
            check_output_directory(tmp_path / bad)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="no /proc")
def test_a_file_system_that_takes_no_files_is_bad_input():
    with pytest.raises(InputError, match="cannot be written"):
        check_output_directory("/proc/out")
    with pytest.raises(InputError, match="cannot be written"):
        check_output_file("/proc/out.json")


def test_check_output_file(tmp_path: Path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "directory").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for good in ("file", "new", "not/yet/there"):
        check_output_file(tmp_path / good)
    for bad, why in (("directory", "not a regular file"), ("file/child", "Not a directory")):
        with pytest.raises(InputError, match=why):
            check_output_file(tmp_path / bad)
    assert sorted(tmp_path.rglob("*")) == before


def test_read_text(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\xc3\xa9")
    assert read_text(path) == "one\r\n\u00e9"
    path.write_bytes(b"one\ntwo \xe9")
    with pytest.raises(InputError, match=r"f:2: not UTF-8 \(byte 0xe9\); save"):
        read_text(path)
    path.write_bytes(b" \n")
    with pytest.raises(InputError, match="the file is empty"):
        read_text(path)
    with pytest.raises(InputError, match="is a directory"):
        read_text(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_text(tmp_path / "nothing")


def _filled(path: Path, text: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "file").write_text(text)
    return path


def test_two_directories_change_places(tmp_path: Path):
    one, other = _filled(tmp_path / "one", "1"), _filled(tmp_path / "other", "2")
    if not exchange(one, other):
        pytest.skip("this system cannot exchange directories")
    assert ((one / "file").read_text(), (other / "file").read_text()) == ("2", "1")
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "nothing")
