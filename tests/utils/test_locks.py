from __future__ import annotations

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
