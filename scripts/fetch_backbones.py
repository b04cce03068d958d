"""Fetch small real backbones into the user's cache, as `memlayers fetch` does.

Example: ``python scripts/fetch_backbones.py smollm2 qwen gemma``
"""

from __future__ import annotations

import argparse
import sys

from memlayers import cli
from memlayers.config.named_backbones import NAMED_BACKBONES


def main() -> None:
    """Fetches those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="name", help=f"some of {', '.join(NAMED_BACKBONES)}")
    sys.argv[1:] = ["fetch", *parser.parse_args().names]
    cli.main()


if __name__ == "__main__":
    main()
