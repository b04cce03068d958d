"""Which runs the protocol is made of, in which order, and what is there of them already. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memlayers.evaluation.results import Results, read_results
from memlayers.utils.errors import InputError

HEADLINE = 1000
"""Facts that the bars of the page are stated for."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One teaching run.

    Attributes:
        recipe: "addressed" or "dense".
        gate: whether a gate is trained.
        facts: how many are taught.
        seed: of the choice of facts, of teaching, and of the questions asked.
    """

    recipe: str
    gate: bool
    facts: int
    seed: int

    @property
    def name(self) -> str:
        """Of its file, without the suffix: "addressed-gate-1000-137"."""
        return f"{self.recipe}-{'gate' if self.gate else 'nogate'}-{self.facts}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Every combination of these is a cell; what is named first matters most.

    Attributes:
        recipes: of teaching.
        gates: with, without.
        sizes: numbers of facts.
        seeds: of each combination.
    """

    recipes: tuple[str, ...] = ("addressed", "dense")
    gates: tuple[bool, ...] = (True, False)
    sizes: tuple[int, ...] = (100, 300, 1000, 5000)
    seeds: tuple[int, ...] = (137, 7, 23)

    def __post_init__(self) -> None:
        for name in ("recipes", "gates", "sizes", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name} {', '.join(map(str, values))}: name at least one, and each once")
        if min(self.sizes) < 1:
            raise InputError(f"sizes {', '.join(map(str, self.sizes))}: a run teaches at least one fact")

    @property
    def headline(self) -> int:
        """The size that comes first on the page: 1,000 facts, or the largest below, or the smallest of all."""
        return max((size for size in self.sizes if size <= HEADLINE), default=min(self.sizes))

    def cells(self) -> list[Cell]:
        """All cells, those a reader waits for first.

        The first recipe with the first choice of gate, at the headline size, then at the smaller ones; then the other
        recipes and gates in the same order; sizes above the headline last.
        """
        sizes = sorted(self.sizes, key=lambda size: (size > self.headline, size != self.headline, size))
        small = [size for size in sizes if size <= self.headline]
        kinds = [(recipe, gate) for gate in self.gates for recipe in self.recipes]
        kinds.sort(key=lambda kind: self.recipes.index(kind[0]))
        return [
            Cell(recipe, gate, size, seed)
            for chosen in (small, sizes[len(small) :])
            for recipe, gate in kinds
            for size in chosen
            for seed in self.seeds
        ]

    def joined(self, cells: Iterable[Cell]) -> Grid:
        """This grid and what these cells add to it, so that a page shows what was run before, too."""
        known = list(cells)

        def union(own: Iterable[Any], more: Iterable[Any]) -> tuple[Any, ...]:
            return tuple(dict.fromkeys((*own, *more)))

        return Grid(
            union(self.recipes, (cell.recipe for cell in known)),
            union(self.gates, (cell.gate for cell in known)),
            tuple(sorted(union(self.sizes, (cell.facts for cell in known)))),
            union(self.seeds, (cell.seed for cell in known)),
        )


def cell_path(out: str | Path, cell: Cell) -> Path:
    """Where the results of a cell lie."""
    return Path(out) / "cells" / f"{cell.name}.json"


def read_cells(out: str | Path) -> dict[Cell, Results]:
    """Reads every cell that is there.

    Raises:
        InputError: one is damaged, or is not a cell.
    """
    found = {}
    for path in sorted((Path(out) / "cells").glob("*.json")):
        try:
            results = read_results(path)
        except InputError as error:
            raise InputError(f"{error} (a damaged cell: delete it, and it is run again)") from error
        config = results.config
        try:
            cell = Cell(config["recipe"], config["gate"], config["facts"], config["seed"])
        except KeyError as error:
            raise InputError(f"{path}: names no {error.args[0]}; keep other files out of this folder") from error
        if cell_path(out, cell) != path:
            raise InputError(f"{path}: holds the cell {cell.name}; give the file its own name again, or delete it")
        found[cell] = results
    return found
