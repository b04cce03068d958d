"""Makes `import memlayers` enough for PEFT to load a memory, without importing PEFT.

`memlayers.tuner` registers the method with PEFT, but importing it takes seconds (PEFT, transformers, torch),
and `import memlayers` shall take none. So the registration waits for PEFT: whoever loads an adapter imports
it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_METHOD = "memlayers.tuner"

LOADING_NOTE = (
    "**To load it, `import memlayers` first**: only then does PEFT know the method. Without it PEFT, transformers and "
    "lm_eval end with `KeyError: 'MEMLAYERS'`."
)
"""What a memory's model card says first."""


def register_with_peft() -> None:
    """Registers the memory with PEFT: at once if PEFT is imported, otherwise as soon as it is."""
    if "peft" in sys.modules:
        importlib.import_module(_METHOD)
    else:
        sys.meta_path.insert(0, _PeftFinder())


class _PeftFinder(MetaPathFinder):
    """Finds `peft`, and nothing else, as the others do, and has the method registered with its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # To be found is not to be imported: transformers asks for the spec to see whether PEFT is installed.
        # So this finder stays in place until the import itself.
        if fullname != "peft":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, self)
        return spec


class _RegisteringLoader(Loader):
    """Loads `peft` with its own loader, then imports the method, which registers itself."""

    def __init__(self, loader: Loader, finder: _PeftFinder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Nothing of this stays behind: PEFT runs with its own loader, and its next import is nobody's
        # business.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        self._loader.exec_module(module)
        importlib.import_module(_METHOD)
