from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memlayers.utils.errors import InputError
from memlayers.utils.locks import writing_alone

HOLDER = """
import sys, time
from memlayers.utils.locks import writing_alone
with writing_alone(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_and_a_dead_one_blocks_nobody(tmp_path: Path):
    target = tmp_path / "target"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        told = pytest.raises(InputError, match=rf"target: process {holder.pid} is editing it")
        with told, writing_alone(target):
            raise AssertionError
        holder.kill()
        holder.wait()
        for _ in range(2):
            with writing_alone(target):
                assert [path.name for path in tmp_path.iterdir()] == [".target.memlayers-lock"]
        assert not list(tmp_path.iterdir())
    finally:
        holder.kill()
        holder.wait()


def test_one_process_does_not_write_twice_at_once(tmp_path: Path):
    target = tmp_path / "target"
    with writing_alone(target):
        with pytest.raises(InputError, match=f"process {os.getpid()} is editing it"), writing_alone(target):
            pytest.fail("the block must not run")
    with pytest.raises(KeyError), writing_alone(target):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_bad_input(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "target", tmp_path / "absent" / "target"):
        with pytest.raises(InputError, match="target: cannot be written"), writing_alone(place):
            pytest.fail("the block must not run")
