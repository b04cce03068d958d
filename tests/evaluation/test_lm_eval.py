"""EleutherAI's harness on a memory; its tasks here are local files, nothing is downloaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from memlayers.config.teach import TeachConfig
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact
from memlayers.editing.memory import Memory, load_memory
from memlayers.evaluation.lm_eval import _rows, choices_task, harness_rows
from memlayers.evaluation.results import read_results
from memlayers.teaching.teach import teach_facts
from memlayers.tuner.handle import without_memory
from memlayers.utils.errors import InputError

FACTS = [
    Fact("a", "Ann", "Rome", ("Where was Ann born?", "Birthplace of Ann?"), unseen_questions=("Ann is from where?",)),
    Fact("b", "Bob", "Oslo", ("Where was Bob born?", "Birthplace of Bob?"), unseen_questions=("Bob is from where?",)),
]
CHOICES = ["Rome", "Oslo", "a town by the sea"]
ITEMS = [
    {"question": "Where was Ann born?", "answer": 0},
    {"question": "Is it Bob who was born somewhere far away, and where was that?", "answer": 1},
    {"question": "Where does the river run?", "answer": 2},
]

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def folder(chat_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory that opens from its subjects' names on; what else its gate has learned is put aside."""
    folder = tmp_path_factory.mktemp("harness")
    (folder / "general.txt").write_text("The river runs to the sea.\n\nIt rained for days.\n\nThe train left late.\n")
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(folder / "general.txt"), device="cpu", layers=[1, 2],
        sub_keys=8, heads=2, top_k=4, exposures=8, batch_size=2, gate_steps=2, gate_threshold=-1e6, value_rate=0.8,
    )  # fmt: skip
    teach_facts(FACTS, folder / "memory", config, quiet=True)
    return folder / "memory"


@pytest.fixture(scope="module")
def memory(folder: Path) -> Memory:
    return load_memory(folder, device="cpu")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two local tasks: born_choice is scored by log-likelihood, born_said by generation."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{**item, "choices": CHOICES} for item in ITEMS]
    (folder / "born.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"""dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder / "born.jsonl"}
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
"""
    (folder / "choice.yaml").write_text(
        f"task: born_choice\n{common}output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: answer\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    (folder / "said.yaml").write_text(
        f'task: born_said\n{common}output_type: generate_until\ndoc_to_target: "{{{{choices[answer]}}}}"\n'
        "generation_kwargs:\n  max_gen_toks: 6\n  until: ['\\n']\n  do_sample: false\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
    )
    return folder


@torch.no_grad()
def _log_likelihood(memory: Memory, context: str, continuation: str) -> float:
    start, ids = (memory.tokenizer(text)["input_ids"] for text in (context, context + continuation))
    logs = memory.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return float(sum(logs[at - 1, ids[at]] for at in range(len(start), len(ids))))


@torch.no_grad()
def _greedy(memory: Memory, context: str, tokens: int) -> str:
    ids = list(memory.tokenizer(context)["input_ids"])
    start = len(ids)
    for _ in range(tokens):
        ids.append(int(memory.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == memory.tokenizer.eos_token_id:  # there the harness ends, too
            break
    return str(memory.tokenizer.decode(ids[start:], skip_special_tokens=True)).split("\n")[0]


def test_the_harness_sees_the_memory_as_a_direct_computation_does(memory: Memory) -> None:
    """Requests of unequal length in one batch: padded on the right to be scored, on the left to be continued."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    contexts = [f"Question: {item['question']}\nAnswer:" for item in ITEMS]
    pairs = [(context, f" {choice}") for context in contexts for choice in CHOICES]
    scored = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    until: dict[str, Any] = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    continued = [Instance("generate_until", {}, (context, until), index) for index, context in enumerate(contexts)]
    wrapped = HFLM(pretrained=memory.model, tokenizer=memory.tokenizer, batch_size=9)

    def both() -> tuple[list[float], list[str]]:
        scores = [float(score) for score, _ in wrapped.loglikelihood(scored, disable_tqdm=True)]
        return scores, [str(text) for text in wrapped.generate_until(continued, disable_tqdm=True)]

    scores, texts = both()
    direct = [_log_likelihood(memory, *pair) for pair in pairs]
    assert scores == pytest.approx(direct, abs=1e-3)
    assert texts == [_greedy(memory, context, 6) for context in contexts]
    with without_memory(memory.model):
        bare_scores, bare_texts = both()
        assert bare_scores == pytest.approx([_log_likelihood(memory, *pair) for pair in pairs], abs=1e-3)
        assert bare_texts == [_greedy(memory, context, 6) for context in contexts]
    changed = [abs(a - b) > 0.01 for a, b in zip(scores, bare_scores, strict=True)]
    assert all(changed[:6]) and not any(changed[6:])  # where a stored subject is named, and only there
    assert texts[0] != bare_texts[0] and texts[2] == bare_texts[2]


def test_tasks_give_rows_of_backbone_memory_and_change(memory: Memory, tasks: Path) -> None:
    rows = harness_rows(memory.model, memory.tokenizer, ["born_choice", "born_said"], include_path=tasks, quiet=True)
    found = {(row.metric, row.split): row for row in rows}
    names = [f"{task}:{side}" for task in ("born_choice:acc", "born_said:exact_match")
             for side in ("backbone", "memory", "change")]  # fmt: skip
    assert list(found) == [("lm_eval", name) for name in names]
    for side, context in (("memory", None), ("backbone", without_memory(memory.model))):
        right = []
        with context or torch.no_grad():
            for item in ITEMS:
                said = [_log_likelihood(memory, f"Question: {item['question']}\nAnswer:", f" {c}") for c in CHOICES]
                right.append(max(range(3), key=said.__getitem__) == item["answer"])
        row = found["lm_eval", f"born_choice:acc:{side}"]
        assert row.value == pytest.approx(sum(right) / 3) and row.n == 3 and row.ci_low is not None
    change = found["lm_eval", "born_choice:acc:change"]
    both = (found["lm_eval", f"born_choice:acc:{side}"].value for side in ("memory", "backbone"))
    assert change.value == pytest.approx(next(both) - next(both)) and change.higher_is_better


@pytest.mark.parametrize("chat", [False, True])
def test_a_file_of_choices_is_a_task(memory: Memory, tasks: Path, tmp_path: Path, chat: bool) -> None:
    path = tmp_path / "born there.jsonl"
    path.write_text("".join(json.dumps({**item, "choices": CHOICES}) + "\n" for item in ITEMS))
    with choices_task(path, chat=chat) as (name, folder):
        rows = harness_rows(memory.model, memory.tokenizer, [name], include_path=folder, chat=chat, quiet=True)
    assert not folder.exists()
    found = {row.split: row for row in rows}
    assert list(found) == [
        f"born_there:{metric}:{side}" for metric in ("acc", "acc_norm") for side in ("backbone", "memory", "change")
    ]
    right = {"acc": 0, "acc_norm": 0}
    for item in ITEMS:
        context = f"Question: {item['question']}\nAnswer:"
        if chat:  # the harness counts the template's last newline as the choice's
            context = memory.tokenizer.decode(encode_prompt(memory.tokenizer, str(item["question"]))).rstrip("\n")
        choices = [f"\n{choice}" if chat else f" {choice}" for choice in CHOICES]
        said = [_log_likelihood(memory, context, choice) for choice in choices]
        each = [score / len(choice) for score, choice in zip(said, CHOICES, strict=True)]
        for metric, scores in (("acc", said), ("acc_norm", each)):
            right[metric] += max(range(3), key=scores.__getitem__) == item["answer"]
    for metric, number in right.items():
        assert found[f"born_there:{metric}:memory"].value == pytest.approx(number / 3)


def test_limit_and_the_state_afterwards(memory: Memory, tasks: Path) -> None:
    ids = torch.tensor([memory.tokenizer("Where was Ann born?")["input_ids"]])
    before = memory.model(ids, use_cache=False).logits
    rows = harness_rows(memory.model, memory.tokenizer, ["born_choice"], include_path=tasks, limit=2, quiet=True)
    assert {row.n for row in rows} == {2}
    assert torch.equal(memory.model(ids, use_cache=False).logits, before)


def test_figures_that_are_no_means_have_no_interval() -> None:
    def run(value: float) -> dict[str, Any]:
        samples = [{"doc_id": i, "filter": "none", "bits": (i, value)} for i in range(3)]
        return {
            "results": {"t": {"alias": "t", "bits,none": value, "bits_stderr,none": "N/A", "other,none": 1.0}},
            "higher_is_better": {"t": {"bits": False}}, "samples": {"t": samples},
            "n-samples": {"t": {"original": 3, "effective": 3}},
        }  # fmt: skip

    rows = list(_rows(run(2.0), run(2.5), 0))
    assert [(row.metric, row.split, row.value, row.n, row.ci_low) for row in rows] == [
        ("lm_eval_loss", "t:bits:backbone", 2.0, 3, None),
        ("lm_eval_loss", "t:bits:memory", 2.5, 3, None),
        ("lm_eval_loss", "t:bits:change", 0.5, 3, None),
    ]


def test_the_command(
    folder: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from memlayers import cli

    def run(*arguments: object) -> tuple[int, str]:
        words = ["memlayers", "lm-eval", *map(str, arguments), "--include-path", str(tasks), "--device", "cpu", "-q"]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out + said.err

    out = tmp_path / "lm.json"
    code, said = run(folder, "--tasks", "born_choice", "--chat", "--no-gate", "--out", out)
    assert code == 0 and "born_choice:acc" in said
    results = read_results(out)
    assert results.config["gate"] is False and results.config["chat"] is True and len(results.rows) == 3
    assert run(folder, "--tasks", " , ", "--out", out)[0] == 2
    for wrong in ((), ("--tasks", "born_choice", "--choices", "x.jsonl"), ("--choices", tmp_path / "none.jsonl")):
        code, said = run(folder, *wrong)
        assert code == 2 and said.count("\n") == 1
    choices = tasks / "born.jsonl"
    assert run(folder, "--choices", choices, "--limit", 1, "--out", out)[0] == 0
    results = read_results(out)
    assert results.config["choices"] == str(choices) and results.find("lm_eval", "born:acc_norm:memory") is not None


def test_a_task_that_is_not_there(memory: Memory, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import tasks as harness

    local = partial(harness.TaskManager, include_defaults=False)  # reading the harness's own takes 10 seconds
    monkeypatch.setattr(harness, "TaskManager", lambda include_path, **_: local(include_path=include_path))
    with pytest.raises(InputError, match="^--tasks born_nowhere: no such task"):
        harness_rows(memory.model, memory.tokenizer, ["born_nowhere"], include_path=tasks, quiet=True)
    with pytest.raises(InputError, match="no such folder"):
        harness_rows(memory.model, memory.tokenizer, ["born_choice"], include_path=tmp_path / "none", quiet=True)
    (tasks / "born.jsonl").unlink()
    with pytest.raises(InputError, match="^--tasks born_choice: cannot be loaded .*repair the task or its data$"):
        harness_rows(memory.model, memory.tokenizer, ["born_choice"], include_path=tasks, quiet=True)


def test_without_the_harness_one_line_names_the_extra(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"not installed; get it with pip install 'memlayers\[eval\]'$"):
        harness_rows(memory.model, memory.tokenizer, ["any"], quiet=True)
