"""The README.md of a memory's folder: what was taught, how, how it scores, and how to load it. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from memlayers._registration import LOADING_NOTE
from memlayers.config.teach import TeachConfig
from memlayers.data.facts import Fact
from memlayers.inference.record import Teaching, TeachReport

CARD_FILE = "README.md"
EXAMPLES = 3  # questions that it shows, without their answers
MOST_RELATIONS = 8  # named


def write_model_card(folder: Path, teaching: Teaching, facts: Sequence[Fact], memory: Any) -> None:
    """Writes the card into a memory's folder, in place of peft's blank one.

    Args:
        folder: of the adapter.
        teaching: the record of what was done.
        facts: what was taught; their text is left out where the memory does not keep it.
        memory: its `MemoryConfig`.
    """
    assert teaching.config is not None
    parts = [
        _head(teaching.config),
        *_taught(teaching, facts),
        *_how(teaching.config, memory, teaching.report),
        *_scores(teaching.report),
        *_loading(teaching.config, facts),
        *_limits(),
    ]
    (folder / CARD_FILE).write_text("\n".join(parts) + "\n", encoding="utf-8")


def _head(config: TeachConfig) -> str:
    # What the Hugging Face hub reads. A path of this machine means nothing elsewhere.
    base = f"base_model: {config.backbone}\n" if _on_the_hub(config.backbone) else ""
    return f"---\n{base}library_name: peft\npipeline_tag: text-generation\ntags:\n- memlayers\n---\n"


def _on_the_hub(backbone: str) -> bool:
    return backbone.count("/") == 1 and not backbone.startswith((".", "/", "~")) and not Path(backbone).exists()


def _taught(teaching: Teaching, facts: Sequence[Fact]) -> Iterator[str]:
    config = teaching.config
    assert config is not None
    day = str(teaching.environment.get("date", ""))[:10]
    yield f"# A memory of {teaching.facts:,} facts on {config.backbone}\n"
    yield f"{LOADING_NOTE}\n"
    yield (
        "Memory layers (memlayers, a PEFT method) that teach a frozen language model facts. This page says what was "
        f"taught on {day}; `memlayers list FOLDER` shows what the memory holds now, `memlayers journal FOLDER` the "
        "edits since.\n"
    )
    yield "## What was taught\n"
    phrasings = sum(len(fact.questions) for fact in facts)
    subjects = len({fact.subject for fact in facts if fact.subject})
    about = f" about {subjects:,} subjects" if subjects else ""
    yield f"{len(facts):,} facts{about}, in {phrasings:,} phrasings."
    if not config.data.keep_facts:
        yield "The memory does not keep their text.\n"
        return
    relations = sorted({fact.relation for fact in facts if fact.relation})
    if relations:
        more = f" and {len(relations) - MOST_RELATIONS} more" if len(relations) > MOST_RELATIONS else ""
        yield f"Relations: {', '.join(relations[:MOST_RELATIONS])}{more}."
    yield "For example:\n"
    step = max(1, len(facts) // EXAMPLES)
    for fact in facts[::step][:EXAMPLES]:
        yield f"- {' '.join(fact.questions[0].split())}"
    yield ""


def _how(config: TeachConfig, memory: Any, report: TeachReport) -> Iterator[str]:
    found, shape = memory.fingerprint or {}, memory.shape
    gate = "none" if not config.gated else "a relevance gate" + (
        ", open only behind the names of stored subjects" if config.gate.subjects else ""
    )  # fmt: skip
    rows = {
        "recipe": config.memory.recipe,
        "slots": f"{shape.sub_keys**2:,} ({shape.sub_keys} x {shape.sub_keys}), {memory.pool_dtype}, one pool",
        "layers": ", ".join(map(str, memory.layers)),
        "reads": f"{shape.heads} heads x top-{memory.top_k} per token and layer",
        "gate": gate,
        "backbone": f"{config.backbone}: {found.get('model_type')}, {found.get('layers')} layers of width "
        f"{found.get('hidden_size')}, vocabulary of {found.get('vocab_size')}",
        "fingerprint": " ".join(map(str, found.get("probe", []))),
        "teaching": f"{report.exposures:g} exposures per fact, {report.steps:,} steps, {report.seconds:.0f} s, "
        f"seed {config.seed}",
    }
    yield "## How\n"
    yield from _table(rows)
    yield (
        "\nAll settings are in `teaching.json`. The fingerprint tells this backbone from others: on another one the "
        "memory is refused.\n"
    )


def _scores(report: TeachReport) -> Iterator[str]:
    rows = {"recall, taught phrasings, free generation": f"{report.recall:.1%}"}
    last = report.curve[-1] if report.curve else None
    if last is not None and last.perplexity is not None:
        rows["perplexity, held-out text"] = f"{last.perplexity:.3f}"
    if last is not None and last.known_facts is not None:
        rows["known facts answered, a sample"] = f"{last.known_facts:.1%}"
    for number, gate in enumerate(report.gates):
        name = "gate" if len(report.gates) == 1 else f"gate {number}"
        rows[f"{name}: open on the facts' tokens"] = f"{gate.open_on_facts:.1%}"
        rows[f"{name}: open on general text"] = f"{gate.open_on_general:.2%}"
    if report.relations is not None:
        rows["questions for what was taught that pass the relation check"] = f"{report.relations.accepted_stored:.1%}"
        rows["questions for something else that pass it"] = f"{report.relations.accepted_others:.1%}"
    if report.thresholds is not None:
        rows["least confidence of an answer: memory, backbone"] = "{:.4f}, {:.4f}".format(*report.thresholds)
    yield "## How it scores\n"
    yield (
        "As measured while it was taught; `memlayers eval FOLDER --facts FOLDER/facts.jsonl --out scores.json` scores "
        "it against its backbone.\n"
    )
    yield from _table(rows)
    yield ""


def _loading(config: TeachConfig, facts: Sequence[Fact]) -> Iterator[str]:
    question = " ".join(facts[0].questions[0].split()) if config.data.keep_facts else "..."
    quoted = '"' + question.replace("\\", "\\\\").replace('"', '\\"') + '"'
    yield "## How to load it\n"
    yield f"```bash\nmemlayers ask FOLDER {quoted}\n```\n"
    yield (
        "```python\nfrom memlayers import load_memory\n\n"
        f'memory = load_memory("FOLDER")\nprint(memory.ask({quoted}))\n```\n'
    )
    yield (
        "As a PEFT adapter:\n\n"
        "```python\nfrom memlayers import load_backbone\nfrom peft import PeftModel\n\n"
        f'model, tokenizer = load_backbone("{config.backbone}")\n'
        'model = PeftModel.from_pretrained(model, "FOLDER")\n```\n'
    )


def _limits() -> Iterator[str]:
    yield "## Limits and licence\n"
    yield (
        "It answers questions about what it was taught, in phrasings like those taught; it does not reason over the "
        "facts, and an answer may be wrong. The licences of the backbone and of the facts hold for it."
    )


def _table(rows: dict[str, str]) -> Iterator[str]:
    yield "| | |\n|---|---|"
    for name, value in rows.items():
        yield f"| {name} | {value} |"
