"""The two ways a command can end badly; the command line turns them into one line and an exit code."""

from __future__ import annotations


class InputError(ValueError):
    """The input is wrong: what, where, and how to put it right, in one line. Exit code 2."""


class WorkError(RuntimeError):
    """The input was fine but the work failed. Exit code 1."""
