from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import memlayers

PACKAGE = Path(memlayers.__file__).parent

# The house's order: a module imports only modules above it. `pocket` holds data files: it imports nothing, so
# that anyone may read them.
ORDER = (
    "pocket",
    "errors",
    "files",
    "facts",
    "entity_questions",
    "journal",
    "synthetic",
    "metrics",
    "results",
    "report",
    "probes",
    "teaching",
    "progress",
    "plan",
    "encoding",
    "kernels.interface",
    "kernels.reference",
    "kernels.numba_cpu",
    "kernels.triton_gpu",
    "kernels",
    "product_keys",
    "value_pool",
    "row_state",
    "offload",
    "optimizer",
    "backbones",
    "tuner.config",
    "tuner.relevance",
    "tuner.subjects",
    "tuner.relations",
    "tuner.layer",
    "tuner.model",
    "tuner",
    "general_text",
    "generate",
    "guesses",
    "calibrate",
    "protection",
    "gate",
    "relations",
    "session",
    "writing",
    "known_subjects",
    "teach",
    "regate",
    "evaluate",
    "harness",
    "diagnose",
    "slot_use",
    "editing",
    "bench",
    "bench.figures",
    "bench.reads",
    "bench.stages",
    "bench.peers",
    "bench.overhead",
    "bench.run",
    "bench.report",
    "demo",
    "protocol",
    "protocol.grid",
    "protocol.page",
    "protocol.run",
    "cli.common",
    "cli.teaching",
    "cli.measuring",
    "cli.editing",
    "cli.facts",
    "cli.machine",
    "cli",
    "cli.__main__",
    "_registration",
    "",  # the package itself
)
WITHOUT_TORCH = (
    "errors", "files", "facts", "entity_questions", "journal", "synthetic", "metrics", "results", "report", "probes",
    "teaching", "progress", "plan", "bench.figures", "bench.report", "protocol.grid", "protocol.page", "protocol.run",
    "cli.common", "cli.teaching", "cli.measuring", "cli.editing", "cli.facts", "cli.machine", "cli",
)  # fmt: skip
HEAVY = {"accelerate", "matplotlib", "numba", "peft", "torch", "transformers", "triton"}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _own_imports(name: str, source: str) -> set[str]:
    """The modules of this package that `source`, the text of module `name`, imports anywhere in it."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            full = "." * node.level + (node.module or "")
            full = importlib.util.resolve_name(full, f"memlayers.{package}".strip("."))
            found |= {_module_of(f"{full}.{alias.name}", full) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {entry.partition(".")[2] for entry in found if entry.split(".")[0] == "memlayers"}


def _module_of(imported: str, home: str) -> str:
    """`from home import name` imports home.name where that is a module, else home."""
    return imported if imported.partition(".")[2] in ORDER else home


def _python(code: str) -> str:
    """Runs `code` in a fresh interpreter and returns what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_module_has_its_place():
    assert set(MODULES) <= set(ORDER), f"no place in ORDER: {sorted(set(MODULES) - set(ORDER))}"
    assert len(MODULES) > 1


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_modules_above_it(name: str):
    above = set(ORDER[: ORDER.index(name)])
    imported = _own_imports(name, MODULES[name].read_text(encoding="utf-8"))
    assert imported <= above, f"{name or 'memlayers'} imports {sorted(imported - above)}, which are not above it"


def test_the_order_test_sees_every_kind_of_import():
    source = (
        "import memlayers.cli, torch\nfrom memlayers import facts, InputError\nfrom torch import nn\n"
        "from . import report\nfrom .errors import WorkError\n"
        "def f():\n    from memlayers.tuner.layer import MemoryLayer\n"
    )
    expected = {"cli", "facts", "", "report", "errors", "tuner.layer"}
    assert _own_imports("encoding", source) == expected
    assert _own_imports("", source) == expected


@pytest.mark.parametrize("name", [name for name in WITHOUT_TORCH if name in MODULES])
def test_light_modules_import_nothing_heavy(name: str):
    loaded = _python(f"import memlayers.{name}, sys; print(*(m for m in sys.modules if '.' not in m))").split()
    assert not HEAVY & set(loaded)


def test_the_package_imports_nothing_heavy():
    loaded = _python("import memlayers, sys; print(*(m for m in sys.modules if '.' not in m))").split()
    assert "memlayers" in loaded
    assert not HEAVY & set(loaded)


def test_light_names_stay_light():
    code = "import memlayers as m, sys; m.read_facts, m.Fact, m.InputError; print(*sys.modules)"
    assert not HEAVY & set(_python(code).split())


def test_every_public_name_is_there():
    assert memlayers.__all__ == sorted(memlayers.__all__)
    for name in memlayers.__all__:
        assert getattr(memlayers, name).__name__ == name
    assert set(memlayers.__all__) <= set(dir(memlayers))


def test_no_public_name_is_a_module():
    # Importing the module would put it in place of the function.
    assert not set(memlayers.__all__) & set(MODULES)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = memlayers.nothing


REGISTERED = "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as known; print('MEMLAYERS' in known)"


@pytest.mark.parametrize(
    "imports",
    [
        "import memlayers; import peft",
        "import peft; import memlayers",
        "import memlayers; import peft.mapping",
        "import memlayers; import memlayers.tuner",
        "import memlayers.tuner.config",
        # How transformers sees whether PEFT is installed: found long before it is imported.
        "import memlayers, importlib.util; importlib.util.find_spec('peft'); import peft",
    ],
)
def test_importing_the_package_registers_the_method(imports: str):
    assert _python(f"{imports}; {REGISTERED}") == "True"


def test_the_method_is_not_there_without_the_package():
    assert _python(REGISTERED) == "False"


def test_the_import_hook_leaves_nothing_behind():
    code = """
import sys
before = list(sys.meta_path)
import memlayers
assert len(sys.meta_path) == len(before) + 1
import memlayers, peft
assert not [f for f in sys.meta_path if type(f).__module__.startswith("memlayers")]
print(peft.__spec__.loader is peft.__loader__, type(peft.__loader__).__module__.startswith("memlayers"))
"""
    assert _python(code) == "True False"


def test_a_missing_peft_is_still_a_missing_module():
    code = """
import sys
sys.path[:] = [p for p in sys.path if "site-packages" not in p]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__ + repr(f)]
import memlayers
try:
    import peft
except ModuleNotFoundError as error:
    print(error.name)
"""
    location = str(PACKAGE.parent)
    assert _python(f"import sys; sys.path.insert(0, {location!r})\n{code}") == "peft"
