from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import memlayers

PACKAGE = Path(memlayers.__file__).parent

# What `--help`, and whoever only reads facts, results or plans, needs: no torch. (The order of the packages is a
# contract in pyproject.toml, which `lint-imports` holds.)
WITHOUT_TORCH = (
    "cli", "comparison.names", "comparison.page", "comparison.run", "config.named_backbones", "config.sections",
    "config.teach", "data.answers", "data.entity_questions",
    "data.fact_files", "data.facts", "data.synthetic", "editing.config", "editing.fact_book", "editing.journal",
    "editing.memory", "editing.report", "evaluation.asked", "evaluation.probes", "evaluation.report",
    "evaluation.results", "evaluation.statistics", "inference.folder", "inference.record",
    "performance.backbone_size", "performance.figures",
    "performance.plan", "performance.report", "certificate.certificate", "certificate.difference", "certificate.page",
    "sources.check_page", "sources.checks", "sources.documents", "sources.rules", "sources.tables",
    "sources.wordings", "sources.writer", "sources.writer_client",
    "sweep.grid", "sweep.page", "sweep.run", "utils.environment",
    "utils.errors", "utils.files", "utils.locks", "utils.progress",
)  # fmt: skip
HEAVY = {"accelerate", "matplotlib", "numba", "openai", "peft", "torch", "transformers", "triton"}


def _python(code: str) -> str:
    """Runs `code` in a fresh interpreter and returns what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    return _printed(done)


def _printed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_light_modules_import_nothing_heavy():
    modules = ", ".join(f"memlayers.{name}" for name in WITHOUT_TORCH)
    loaded = _python(f"import {modules}, sys; print(*(m for m in sys.modules if '.' not in m))").split()
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
    assert not set(memlayers.__all__) & {path.stem for path in PACKAGE.iterdir()}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = memlayers.nothing


# In processes that have torch and transformers already; tuner/test_peft.py has one that is wholly fresh.
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
def test_importing_the_package_registers_the_method(imports: str, warm_python: Any):
    assert _printed(warm_python.run(f"{imports}; {REGISTERED}")) == "True"


def test_the_method_is_not_there_without_the_package(warm_python: Any):
    assert _printed(warm_python.run(REGISTERED)) == "False"


def test_the_import_hook_leaves_nothing_behind(warm_python: Any):
    code = """
import sys
before = list(sys.meta_path)
import memlayers
assert len(sys.meta_path) == len(before) + 1
import memlayers, peft
assert not [f for f in sys.meta_path if type(f).__module__.startswith("memlayers")]
print(peft.__spec__.loader is peft.__loader__, type(peft.__loader__).__module__.startswith("memlayers"))
"""
    assert _printed(warm_python.run(code)) == "True False"


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
