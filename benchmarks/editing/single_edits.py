"""What editing a memory costs and keeps: updates and forgets, one at a time, by each rule of slot choice.

Teaches the pocket backbone EntityQuestions facts (once; the memory is kept in ``--work``), then, on a copy of it and
for each rule: updates so many of them, one after another, each to another answer of its relation, and forgets so many.
All other facts are asked before and after, in a taught phrasing and in one never taught, in free generation. The last
ten updates are saved one by one and taken back again, and hashes compared. Writes
``benchmarks/results/edits/FACTS-RULE[-SLOTS].json`` and ``edits.md``, the table of all that are there.

``never``: two memories, one taught all facts and made to forget some, one after another, one never taught those; how
far the old answers are from the bare backbone's, through the gate and with the memory read for every token.

Examples::

    python -m benchmarks.editing.single_edits edits --edits 200
    python -m benchmarks.editing.single_edits never --facts 300
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.common import SEED
from memlayers import EditConfig, EditRefused, EditReport, Fact, Memory, TeachConfig, load_memory, teach_facts
from memlayers.data.encoding import encode_example
from memlayers.editing.journal import read_journal
from memlayers.evaluation.results import Results, Row, read_results, write_results
from memlayers.evaluation.statistics import mean_interval
from memlayers.inference.folder import SLOT_USE_FILE, stored_facts
from memlayers.inference.generation import answer_questions
from memlayers.inference.scoring import answer_standing
from memlayers.tuner import without_memory
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

RESULTS = common.RESULTS / "edits"
UNDONE = 10


def memory_of(work: Path, facts: int, part: int | None = None) -> Path:
    """A memory of the first `part` (None: all) of so many facts, taught where it is not there yet."""
    out = work / (f"m{facts}" if part is None else f"m{facts}-{part}")
    if not (out / "facts.jsonl").is_file():
        teach_facts(common.new_facts(2000)[:facts][:part], out, TeachConfig())
    return out


def asked_of(facts: Sequence[Fact]) -> dict[str, list[tuple[str, Fact]]]:
    """One taught phrasing of each fact, and one that was never taught."""
    return {
        "taught": [(fact.questions[1], fact) for fact in facts],
        "unseen": [(fact.unseen_questions[0], fact) for fact in facts if fact.unseen_questions],
    }


def answers_of(memory: Memory, asked: Sequence[tuple[str, Fact]]) -> list[str]:
    """In free generation."""
    return answer_questions(memory.model, memory.tokenizer, [question for question, _ in asked])


def share(metric: str, split: str, values: Sequence[float]) -> Row:
    """The row of a mean."""
    return Row.from_estimate(metric, split, mean_interval(values, SEED))


def others_rows(
    memory: Memory,
    before: Mapping[str, Sequence[str]],
    asked: Mapping[str, Sequence[tuple[str, Fact]]],
    edits: int,
    name: str,
) -> list[Row]:
    """The share of the other facts' answers that changed, per edit."""
    rows = []
    for kind, pairs in asked.items():
        now = answers_of(memory, pairs)
        changed = [float(a != b) for a, b in zip(before[kind], now, strict=True)]
        accepted = [fact.answers for _, fact in pairs]
        was_right, is_right = common.right(before[kind], accepted), common.right(now, accepted)
        lost = [float(was and not still) for was, still in zip(was_right, is_right, strict=True)]
        for metric, values in (("others_changed", changed), ("others_lost", lost)):
            mean = mean_interval(values, SEED)
            ends = (value / edits for value in (mean.value, mean.ci_low, mean.ci_high))
            value, low, high = ends
            rows.append(Row(metric, f"{name}_{kind}_per_edit", value, len(values), low, high))
    return rows


def measure(source: Path, work: Path, rule: str, count: int | None, edits: int, others: int | None) -> Results:
    """Updates and forgets by one rule."""
    folder = work / f"{source.name}-{rule}"
    config = EditConfig(slots=rule, slot_count=count)  # type: ignore[arg-type]  # EditConfig checks it
    rows: list[Row] = []
    for kind in ("update", "forget"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        rng = random.Random(f"{SEED}:edits")
        facts = stored_facts(folder)
        chosen = rng.sample(facts, edits)
        ids = {fact.id for fact in chosen}
        rest = [fact for fact in facts if fact.id not in ids]
        asked = asked_of(rest if others is None else rng.sample(rest, min(others, len(rest))))
        with load_memory(folder, edits=config, autosave=False) as memory:
            began = time.perf_counter()
            memory.prepare()
            rows.append(Row("edit_seconds", f"{kind}_prepare", time.perf_counter() - began, len(facts)))
            before = {name: answers_of(memory, pairs) for name, pairs in asked.items()}
            reports, refused, cpu, done = [], 0, [], []
            for number, fact in enumerate(chosen):
                if number == edits - UNDONE:
                    memory.save()
                memory.autosave = number >= edits - UNDONE
                spent = time.process_time()
                try:
                    if kind == "update":
                        drawn = [f.answer for f in facts if f.relation == fact.relation and f.answer != fact.answer]
                        new = replace(fact, answer=rng.choice(drawn), aliases=())
                        reports.append(memory.update([new]))
                        done.append((new, fact))
                    else:
                        reports.append(memory.forget(ids=[fact.id]))
                        done.append((fact, fact))
                except EditRefused as error:
                    print(error, flush=True)
                    refused += 1
                cpu.append(time.process_time() - spent)
                print(f"{rule} {kind} {number + 1} of {edits}, {cpu[-1]:.1f} s of CPU", flush=True)
            rows.append(share("edit_refused", kind, [1.0] * refused + [0.0] * len(reports)))
            rows.append(share("edit_seconds", kind, [report.seconds for report in reports]))
            rows.append(share("edit_cpu_seconds", kind, cpu))
            rows.append(share("edit_steps", kind, [float(report.steps) for report in reports]))
            rows.append(share("edit_slots", kind, [float(report.slots) for report in reports]))
            saved = [report.saving for report in reports if report.saving]
            if saved:
                rows.append(share("save_seconds", kind, saved))
            rows += others_rows(memory, before, asked, edits, kind)
            if kind == "update":
                rows += update_rows(memory, done)
                rows += undo_rows(memory, folder)
                shutil.copy2(folder / SLOT_USE_FILE, source / SLOT_USE_FILE)  # a cache
            else:
                rows += forget_rows(memory, reports, done)
        shutil.rmtree(folder)
    settings = {"memory": source.name, "edits": edits, "others": others, "seed": SEED, **asdict(config)}
    return Results(environment("cpu"), settings, rows)


def update_rows(memory: Memory, done: list[tuple[Fact, Fact]]) -> list[Row]:
    """At the end of all updates: the new answers, and the old ones."""
    rows = []
    for name, questions in (("taught", "questions"), ("unseen", "unseen_questions")):
        pairs = [(q, new, old) for new, old in done for q in getattr(new, questions)]
        given = answers_of(memory, [(q, new) for q, new, _ in pairs])
        right = common.right(given, [new.answers for _, new, _ in pairs])
        stale = common.right(given, [old.answers for _, _, old in pairs])
        rows += [share("recall", f"updated_{name}", right), share("old_answer_given", f"updated_{name}", stale)]
    return rows


def undo_rows(memory: Memory, folder: Path) -> list[Row]:
    """The last edits taken back: the share whose files' hashes are those from before."""
    exact = []
    for record in reversed(read_journal(folder)[0][-UNDONE:]):
        memory.undo()
        undone = read_journal(folder)[0][-1]
        exact.append(float(undone.undoes == record.number and undone.after == record.before))
    return [share("undo_exact", "sha256", exact)]


def forget_rows(memory: Memory, reports: Sequence[EditReport], done: list[tuple[Fact, Fact]]) -> list[Row]:
    """At the end of all forgets: the old answers, in free generation; and the evidence of the reports."""
    rows = []
    for name, questions in (("taught", "questions"), ("unseen", "unseen_questions")):
        pairs = [(q, fact) for fact, _ in done for q in getattr(fact, questions)]
        given = answers_of(memory, pairs)
        with without_memory(memory.model):
            own = answers_of(memory, pairs)
        still = common.right(given, [fact.answers for _, fact in pairs])
        more = [float(s and a != b) for s, a, b in zip(still, given, own, strict=True)]
        rows.append(share("old_answer_given", f"forgotten_{name}", [float(each) for each in still]))
        rows.append(share("old_answer_given", f"forgotten_{name}_and_not_by_the_backbone", more))
        for when in ("before", "after", "backbone", "always_on_before", "always_on"):
            stands = [report.evidence[name][when] for report in reports if name in report.evidence]
            for metric in ("given", "rank", "probability", "log_probability"):
                rows.append(share(f"old_answer_{metric}", f"{name}_{when}", [stand[metric] for stand in stands]))
    rows.append(share("edit_slots", "cleared", [float(report.evidence["slots_cleared"]) for report in reports]))
    return rows


def never(work: Path, facts: int, part: int) -> Results:
    """A memory that forgot facts against one that was never taught them."""
    folder = work / f"forgot-{facts}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(memory_of(work, facts), folder)
    gone = stored_facts(folder)[part:]
    rows: list[Row] = []
    for name, path in (("forgot", folder), ("never_taught", memory_of(work, facts, part))):
        with load_memory(path, autosave=False) as memory:
            for fact in gone if name == "forgot" else ():
                memory.forget(ids=[fact.id])
            asked = [
                encode_example(memory.tokenizer, q, fact.answer)
                for fact in gone
                for q in (fact.questions[0], *fact.unseen_questions)
            ]
            for when, gate in (("gated", True), ("always_on", False)):
                stand = answer_standing(memory.model, memory.tokenizer, asked, gate=gate)
                for metric in ("given", "rank", "probability", "log_probability"):
                    rows.append(Row(f"old_answer_{metric}", f"{name}_{when}", stand[metric], len(asked)))
    return Results(environment("cpu"), {"facts": facts, "forgotten": len(gone), "seed": SEED}, rows)


def table(folder: Path) -> str:
    """A Markdown table of all results that are there, one column each."""
    found = {path.stem: read_results(path) for path in sorted(folder.glob("*.json")) if path.stem != "kills"}
    keys = list(dict.fromkeys((row.metric, row.split) for each in found.values() for row in each.rows))
    rows = []
    for key in keys:
        cells = []
        for results in found.values():
            row = results.find(*key)
            shown = "" if row is None else common.with_interval("{:.4g}".format, row.value, row.ci_low, row.ci_high)
            cells.append("" if row is None else f"{shown}, n = {row.n}")
        rows.append([f"{key[0]}, {key[1]}", *cells])
    return common.markdown_table(["", *found], rows) + "\n"


def main() -> None:
    """Run the part that is named."""
    parser = common.drawing_parser(__doc__)
    parser.add_argument("part", nargs="?", choices=("edits", "never"), default="edits")
    parser.add_argument("--facts", type=int, default=1000)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--others", type=int, default=None, help="ask so many of the other facts; all if not given")
    parser.add_argument("--rules", default="tfidf,kl,all")
    parser.add_argument("--slot-count", type=int, default=EditConfig().slot_count)
    parser.add_argument("--part", dest="kept", type=int, default=240, help="never: so many of the facts stay")
    parser.add_argument("--work", type=Path, default=common.WORK, help="where the taught memories are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    out: Path = arguments.out
    torch.set_num_threads(arguments.threads)
    if arguments.part == "edits" and not arguments.draw:
        source = memory_of(arguments.work, arguments.facts)
        for rule in arguments.rules.split(","):
            count = arguments.slot_count
            results = measure(source, arguments.work, rule, count, arguments.edits, arguments.others)
            name = f"{arguments.facts}-{rule}" + (f"-{count}" if count != EditConfig().slot_count else "")
            write_results(out / f"{name}.json", results)
    elif not arguments.draw:
        results = never(arguments.work, arguments.facts, arguments.kept)
        write_results(out / f"never-{arguments.facts}.json", results)
    atomic_write_text(out / "edits.md", table(out))


if __name__ == "__main__":
    common.start(main)
