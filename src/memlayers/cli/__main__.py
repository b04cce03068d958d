"""Python -m memlayers.cli."""

from memlayers.cli import main

main()
