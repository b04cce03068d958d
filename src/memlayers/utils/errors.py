"""The two ways a command can end badly; the command line turns them into one line and an exit code."""

from __future__ import annotations


class InputError(ValueError):
    """The input is wrong: what, where, and how to put it right, in one line. Exit code 2."""


class WorkError(RuntimeError):
    """The input was fine but the work failed. Exit code 1."""


def reason_of(error: Exception) -> str:
    """What another library's error says, for one line of ours: its first line, or its name where it is silent."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
