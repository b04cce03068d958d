"""Fixtures shared by the tests: tiny random backbones and the real checkpoint of ../shared/data.

Nothing heavy is imported here but in fixtures: xdist's controller reads this file too, before its workers start.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def _has_gpu() -> bool:
    """Whether torch finds a GPU; it is not asked, and so not imported, where no driver has made its device."""
    if not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))):
        return False
    import torch

    return torch.cuda.is_available()


if not _has_gpu():  # Triton reads it when it is first imported, and transformers may import it
    os.environ.setdefault("TRITON_INTERPRET", "1")

if sys.version_info < (3, 12):  # what loads Python's distutils first would have setuptools, and so inductor, fail
    os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2_SIZES = {"n_embd": 32, "n_inner": 48, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": 64}
OVERRIDES: dict[str, dict[str, Any]] = {
    "qwen3": {**SIZES, "head_dim": 8},
    "gemma": {**SIZES, "head_dim": 8},
    "gpt2": {**GPT2_SIZES, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_collection_finish() -> None:
    """What the tests import stays: garbage collection, which accelerate asks for at each training, need not see it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _made_once() -> Iterator[None]:
    """What a process makes once is made once here too, not a thousand times.

    `memlayers`' commands, which typer makes out of functions at each call, and the template of the model card that peft
    writes at each save.
    """
    import jinja2
    import typer.main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", lru_cache(typer.main.get_command))
        patch.setattr(jinja2, "Template", lru_cache(jinja2.Template))
        yield


@pytest.fixture(scope="module")
def short_answers() -> Iterator[None]:
    """Answers end after 8 tokens rather than 32: a random backbone hardly ever ends one itself.

    For modules whose right answers have at most 7 tokens: longer ones are wrong in either case.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memlayers.inference.generation.MAX_NEW_TOKENS", 8)
        yield


@pytest.fixture
def quick_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates are trained in 100 steps rather than 2,000, where the settings do not say otherwise."""
    from memlayers.config.sections import GateConfig

    monkeypatch.setattr(GateConfig, "__init__", partialmethod(GateConfig.__init__, steps=100))


@pytest.fixture
def less_general_text(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the general text in the package every tenth row is read: seconds rather than a minute on the pocket."""
    from memlayers.data import general_text

    rows = general_text.SHIPPED.read_text(encoding="utf-8").splitlines(keepends=True)
    path = tmp_path_factory.mktemp("less") / "general.jsonl"
    path.write_text("".join(rows[::10]), encoding="utf-8")
    monkeypatch.setattr(general_text, "SHIPPED", path)


@pytest.fixture
def tiny_backbone() -> Callable[..., PreTrainedModel]:
    """`tiny_backbone(family="qwen2", seed=0, **config)`: a random LM, hidden 32, 4 layers, 64 tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def build(family: str = "qwen2", seed: int = 0, **config: Any) -> PreTrainedModel:
        sizes = {**OVERRIDES.get(family, SIZES), **config}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()

    return build


@dataclass(frozen=True)
class Started:
    """A process that `WarmPython` started; `ask` is its question to the process behind it."""

    pid: int
    out: Path
    err: Path
    ask: Callable[[dict[str, Any]], Any]

    def poll(self) -> int | None:
        """The exit code (-n where signal n ended it), None while it runs."""
        code: int | None = self.ask({"process": self.pid, "wait": False})
        return code

    def wait(self) -> int:
        """The exit code, once it has ended."""
        return int(self.ask({"process": self.pid, "wait": True}))


class WarmPython:
    """Starts programs in processes of their own that have torch and transformers imported already (forking.py).

    The two libraries were imported in the environment that the command `memlayers` gives them, and offline.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forking.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **quiet, "OMP_NUM_THREADS": "1"},  # as in this process: another split is another sum
        )  # fmt: skip

    def start(self, code: str, *arguments: object) -> Started:
        """Runs `code` as `python -c` would."""
        self._started += 1
        out, err = (self._folder / f"{self._started}.{name}" for name in ("out", "err"))
        for path in (out, err):
            path.touch()
        request: dict[str, Any] = {"code": code, "arguments": [str(each) for each in arguments]}
        pid = self._ask({**request, "environment": dict(os.environ), "stdout": str(out), "stderr": str(err)})
        return Started(int(pid), out, err, self._ask)

    def run(self, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs `code` to its end."""
        process = self.start(code, *arguments)
        return subprocess.CompletedProcess(code, process.wait(), process.out.read_text(), process.err.read_text())

    def close(self) -> None:
        """Ends the process behind it."""
        self._server.communicate()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    """`warm_python.run(code, *arguments)` is `python -c`, without five seconds of importing torch."""
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot fork here")
    python = WarmPython(tmp_path_factory.mktemp("warm_python"))
    yield python
    python.close()


@pytest.fixture(scope="session")
def chat_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Qwen2 (hidden 32, 4 layers, context 192) with a byte-level ChatML tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["user assistant What is the code of", "The river runs to the sea"] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    special = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    # Weights larger than usual: tokens then differ in what the memory layers see of them.
    sizes = {**SIZES, **special, "vocab_size": len(bpe.get_vocab()), "max_position_embeddings": 192}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model("qwen2", **sizes, initializer_range=0.2)
        model = AutoModelForCausalLM.from_config(config)
    folder = tmp_path_factory.mktemp("chat") / "backbone"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def general_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """General text of 20 passages."""
    path = tmp_path_factory.mktemp("general") / "general.txt"
    path.write_text("\n\n".join(f"The river {i} runs to the sea, and {7 * i} ships sail on it." for i in range(20)))
    return path


@pytest.fixture
def ids() -> torch.Tensor:
    """Input ids [3, 9] for the tiny backbones, none of them the end token."""
    import torch

    return torch.randint(3, 64, (3, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tinystories() -> Path:
    """The folder of a really pretrained 656k-parameter Llama."""
    path = Path(__file__).parents[2] / "shared" / "data" / "tinystories-656k"
    if not path.is_dir():
        pytest.skip(f"the real checkpoint is not at {path}")
    return path


@pytest.fixture(scope="session")
def taught_folder(chat_backbone: Path, general_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of seven facts (helpers/editing.py) behind a gate that knows its subjects, on the tiny backbone."""
    from helpers.editing import FACTS
    from memlayers.config.teach import TeachConfig
    from memlayers.teaching.teach import teach_facts

    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(general_file), sub_keys=24, heads=2, top_k=4, key_dim=8,
        gate_threshold=-1e9, gate_steps=20, exposures=120, batch_size=7, value_rate=1.0, warmup=1, recall_sample=14,
        dtype="float32", device="cpu", seed=1,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("taught") / "memory"
    taught = teach_facts(FACTS, out, config, quiet=True)
    assert taught.report.recall == 1.0
    return out
