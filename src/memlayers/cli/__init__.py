"""The command line: one thin command per verb. Heavy imports happen inside the commands.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong (one line: what, where, how to put it right), 130 Ctrl-C.
"""

# In the order of --help.
from memlayers.cli import teach, learn, listing, edit, alias, evaluate, diagnose, sweep, compare  # noqa: F401, I001
from memlayers.cli import serve, facts, check, from_table, from_text, fetch, performance  # noqa: F401, I001
from memlayers.cli.app import app, main

__all__ = ["app", "main"]
