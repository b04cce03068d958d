"""Fetches small real backbones into the user's cache, as `memlayers fetch` does.

python scripts/fetch_backbones.py smollm2 [qwen gemma]
"""

from __future__ import annotations

import sys

from memlayers.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["fetch"]
    main()
