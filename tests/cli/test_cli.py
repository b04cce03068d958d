"""The command line: what each command does, prints and writes. Bad input is in test_bad_input.py."""

from __future__ import annotations

import builtins
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import memlayers
from memlayers import TeachConfig, cli, read_facts, teach_facts
from memlayers.config.teach import flag_fields, read_teach_config
from memlayers.data.fact_files import read_questions
from memlayers.data.facts import Fact
from memlayers.evaluation.results import read_results
from memlayers.inference.record import read_teaching

RECIPES = Path(__file__).parents[2] / "recipes"
FACTS = [
    Fact("a", "Ann", "Rome", ("Where was Ann born?", "Birthplace of Ann?"), "birth", ("Ann is from where?",)),
    Fact("b", "Bob", "Oslo", ("Where was Bob born?", "Birthplace of Bob?"), "birth", ("Bob is from where?",)),
]
GENERAL = "The river runs to the sea, and the sea to nowhere.\n\nIt rained for three days.\n\nThe train left late.\n"
SMALL: dict[str, Any] = {"layers": [1, 2], "sub_keys": 8, "heads": 2, "top_k": 2, "exposures": 2, "batch_size": 2}
ROW = {"metric", "split", "value", "n", "ci_low", "ci_high", "higher_is_better"}

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    memlayers.write_facts(tmp_path / "facts.jsonl", FACTS)
    return tmp_path / "facts.jsonl"


@pytest.fixture
def general(tmp_path: Path) -> Path:
    (tmp_path / "general.txt").write_text(GENERAL)
    return tmp_path / "general.txt"


@pytest.fixture(scope="module")
def memory(chat_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory on `chat_backbone`, without a gate; treat as read-only."""
    folder = tmp_path_factory.mktemp("taught")
    (folder / "general.txt").write_text(GENERAL)
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(folder / "general.txt"), device="cpu", gate=False, **SMALL
    )
    teach_facts(FACTS, folder / "memory", config, quiet=True)
    return folder / "memory"


def _write_settings(path: Path, **flags: Any) -> None:
    path.write_text(json.dumps(dataclasses.asdict(TeachConfig().with_flags(**flags))))


def _python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


# Help and flags


def _commands() -> dict[str, Any]:
    """Every command by the words it is called with."""

    def walk(group: Any, words: str) -> Iterator[tuple[str, Any]]:
        for name, found in group.commands.items():
            if hasattr(found, "commands"):
                yield from walk(found, f"{words}{name} ")
            else:
                yield words + name, found

    return dict(walk(typer.main.get_command(cli.app), ""))


def test_the_commands_are_those_of_the_readme():
    verbs = {"demo", "teach", "ask", "eval", "report", "facts make", "facts check", "facts convert"}
    assert verbs <= set(_commands())


def test_help_without_a_command(command: Command):
    code, out, err = command("--help")
    assert code == 0 and "teach" in out and "facts" in out
    assert "teach" in "".join(command()[1:])


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['memlayers', '--help']\nfrom memlayers.cli import main\n"
        "try:\n    main()\nfinally:\n    print('modules:', *sys.modules)"
    )
    done = _python(code)
    assert done.returncode == 0 and "teach" in done.stdout
    loaded = set(done.stdout.rpartition("modules:")[2].split())
    assert "memlayers.cli" in loaded
    assert not {"torch", "transformers", "peft", "accelerate", "matplotlib"} & loaded


def test_the_module_is_a_command_too():
    done = subprocess.run(
        [sys.executable, "-m", "memlayers.cli", "facts", "make", "list"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "sensor" in done.stdout


@pytest.mark.parametrize("arguments", [["teach"], ["eval"], ["nonsense"], ["teach", "--no-such-flag"], ["demo"]])
def test_wrong_usage_is_2(arguments: list[str], command: Command):
    code, _, err = command(*arguments)
    assert code == 2 and err and "Traceback" not in err


@pytest.mark.parametrize("words", ["teach", "demo"])
def test_every_setting_is_a_flag_with_its_help(words: str):
    options = {option for parameter in _commands()[words].params for option in parameter.opts}
    helps = {parameter.name: parameter.help for parameter in _commands()[words].params}
    for flag in flag_fields():
        if (words, flag) != ("demo", "backbone"):  # the demo's is the pocket
            assert f"--{flag.replace('_', '-')}" in options
            assert len(helps[flag].split("[")[0]) > 5, f"{flag} has no help"


@pytest.fixture
def settings_given(monkeypatch: pytest.MonkeyPatch, facts: Path, command: Command) -> Callable[..., TeachConfig]:
    """`settings_given(*flags)` returns the configuration that `teach` would teach with."""
    from memlayers.teaching import teach

    seen: list[TeachConfig] = []

    def note(rows: Any, out: Any, config: TeachConfig, **_: Any) -> Any:
        seen.append(config)
        raise memlayers.WorkError("stopped here")

    monkeypatch.setattr(teach, "teach_facts", note)

    def run(*flags: object) -> TeachConfig:
        code, _, err = command("teach", "--facts", facts, "--out", "never", *flags)
        assert code == 1 and err == "memlayers: stopped here\n"
        return seen[-1]

    return run


def test_no_flags_are_the_defaults(settings_given: Callable[..., TeachConfig]):
    assert settings_given() == TeachConfig()


def test_every_flag_reaches_its_setting(settings_given: Callable[..., TeachConfig]):
    special = {
        "recipe": "dense", "optimizer": "adamw", "loss": "full", "dtype": "bfloat16", "pool_dtype": "float16",
        "layers": [3, 5], "optimizer_semantics": "lazy", "optimizer_bits": 8, "optimizer_device": "host",
        "half_rounding": "stochastic", "key_dim": 78,
    }  # fmt: skip
    defaults = TeachConfig().flags()
    assert len(defaults) == 40
    for flag, where in flag_fields().items():
        kind = str(where.field.type).split(" |")[0]
        value = special.get(flag, {"int": 77, "float": 0.625, "bool": False}.get(kind, "a/b"))
        name = f"--{flag.replace('_', '-')}"
        if kind == "bool":
            given: list[object] = [name.replace("--", "--no-")]
        else:
            given = [name, ",".join(map(str, value)) if isinstance(value, list) else value]
        config = settings_given(*given)
        assert config.flags() == {**defaults, flag: value}, name
        assert config == TeachConfig().with_flags(**{flag: value})


def test_a_flag_wins_over_the_yaml_file(settings_given: Callable[..., TeachConfig], tmp_path: Path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "schedule:\n  exposures: 3\nseed: 4  # a comment\nmemory:\n  layers: [1, 2]\ngate:\n  enabled: false\n"
        "optimizer:\n  value_rate: 1e-2\n  clip: null\n"
    )
    config = settings_given("--config", path, "--seed", 5, "--layers", "7", "--gate")
    assert config == TeachConfig().with_flags(exposures=3, seed=5, layers=[7], gate=True, value_rate=0.01)
    assert settings_given("--config", path) == TeachConfig().with_flags(
        exposures=3, seed=4, layers=[1, 2], gate=False, value_rate=0.01
    )


# Recipes


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_recipe_can_be_read(path: Path):
    config = read_teach_config(path, {})
    assert config != TeachConfig() or config.backbone == "pocket"
    assert f"--config recipes/{path.name}" in path.read_text(encoding="utf-8")


def test_the_recipes_say_what_they_are_named_for():
    assert read_teach_config(RECIPES / "pocket.yaml", {}).backbone == "pocket"
    assert read_teach_config(RECIPES / "qwen2.5-0.5b.yaml", {}).backbone == "Qwen/Qwen2.5-0.5B-Instruct"
    large = read_teach_config(RECIPES / "qwen2.5-7b-24gb.yaml", {})
    memory = large.memory
    assert (large.machine.dtype, memory.layers, memory.sub_keys, memory.top_k) == ("bfloat16", [6, 14, 22], 224, 8)
    assert (large.schedule.batch_size, large.optimizer.name) == (4, "row-adamw")
    dense = read_teach_config(RECIPES / "reference-dense.yaml", {})
    memory, schedule = dense.memory, dense.schedule
    assert (memory.recipe, memory.layers, memory.shape.sub_keys, memory.shape.heads) == ("dense", [6, 14, 22], 224, 1)
    assert (dense.optimizer.dense_rate, schedule.loss, dense.gated, schedule.pack) == (1e-3, "answer", False, None)


# Facts


def test_facts_make_list_names_every_family(command: Command):
    from memlayers.data.synthetic import capacity
    from memlayers.data.synthetic_families import FAMILIES

    assert _commands()["facts make"].epilog.split()[4] in FAMILIES

    code, out, err = command("facts", "make", "list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(FAMILIES)
    assert all(f"{capacity(line.split()[0]):,} facts" in line for line in lines)


def test_facts_make_is_what_the_library_makes(command: Command, tmp_path: Path):
    from memlayers.data.synthetic import make_facts

    out, fakes = tmp_path / "new" / "facts.jsonl", tmp_path / "fakes.jsonl"
    code, said, err = command(
        "facts", "make", "sensor_calibration", "--n", 20, "--seed", 5, "--out", out, "--fakes", fakes
    )
    assert (code, err) == (0, "") and said == f"20 facts in {out}, 20 fakes in {fakes}\n"
    assert read_facts(out) == make_facts("sensor_calibration", 20, 5)
    assert not {fact.subject for fact in read_facts(out)} & {fact.subject for fact in read_facts(fakes)}
    assert len(read_facts(fakes)) == 20


def test_facts_check(command: Command, facts: Path, tmp_path: Path):
    code, out, err = command("facts", "check", facts)
    assert (code, err) == (0, "")
    assert out == f"{facts}: 2 facts, 4 phrasings, 0 duplicates, 0 contradictions\n"


def test_facts_check_json(command: Command, tmp_path: Path):
    rows = ({"question": "q?", "answers": [answer]} for answer in ("one", "two", "two"))
    (tmp_path / "facts.jsonl").write_text(
        "".join(json.dumps({**row, "id": str(i)}) + "\n" for i, row in enumerate(rows))
    )
    code, out, err = command("facts", "check", tmp_path / "facts.jsonl", "--json")
    assert (code, err) == (2, "")
    report = json.loads(out)
    assert report["facts"] == 3
    (contradiction,), (duplicate,) = report["contradictions"], report["duplicates"]
    assert contradiction["lines"] == [1, 2, 3] and contradiction["answers"] == ["one", "two", "two"]
    assert duplicate["lines"] == [2, 3]


def test_facts_convert_there_and_back(command: Command, tmp_path: Path):
    plain = [dataclasses.replace(fact, unseen_questions=()) for fact in FACTS]
    first, table, second = tmp_path / "a.jsonl", tmp_path / "b.csv", tmp_path / "c.jsonl"
    memlayers.write_facts(first, plain)
    assert command("facts", "convert", first, table) == (0, f"2 facts in {table}\n", "")
    assert table.read_text().splitlines()[:2] == [
        "id,subject,relation,question,answer",
        "a,Ann,birth,Where was Ann born?,Rome",
    ]
    assert command("facts", "convert", table, second)[0] == 0
    assert second.read_bytes() == first.read_bytes()


# Teach, ask, eval, report


def test_teach_leaves_a_memory_and_nothing_else(
    command: Command, chat_backbone: Path, facts: Path, general: Path, tmp_path: Path
):
    _write_settings(tmp_path / "settings.yaml", **SMALL, backbone=str(chat_backbone), gate=False)
    before = set(tmp_path.iterdir())
    arguments = ["teach", "--config", tmp_path / "settings.yaml", "--facts", facts, "--general-text", general]
    code, out, err = command(*arguments, "--out", tmp_path / "memory", "--device", "cpu", "--quiet")
    assert code == 0 and "Traceback" not in err
    assert out.startswith("2 facts, ") and f"the memory is in {tmp_path / 'memory'}" in out
    assert set(tmp_path.iterdir()) - before == {tmp_path / "memory"}
    assert {"adapter_config.json", "adapter_model.safetensors", "teaching.json"} <= {
        path.name for path in (tmp_path / "memory").iterdir()
    }
    record = read_teaching(tmp_path / "memory")
    assert record is not None and record.facts == 2
    assert (record.config.backbone, record.config.memory.layers) == (str(chat_backbone), [1, 2])
    assert command(*arguments, "--out", tmp_path / "memory", "--device", "cpu", "--quiet")[0] == 2
    assert command(*arguments, "--out", tmp_path / "memory", "--device", "cpu", "--quiet", "--replace")[0] == 0


def test_ask_shows_both_answers_side_by_side(command: Command, memory: Path):
    code, out, _ = command("ask", memory, FACTS[0].questions[0], "--device", "cpu")
    assert code == 0
    first, second = out.split("  with memory     ")
    assert first.startswith("  without memory  ")
    expected = memlayers.load_memory(memory, device="cpu").ask([FACTS[0].questions[0]])[0]
    assert expected.backbone != expected.memory
    assert first.removeprefix("  without memory  ").strip() == expected.backbone.strip()
    assert second.strip() == expected.memory.strip()


def test_ask_json(command: Command, memory: Path):
    code, out, _ = command("ask", memory, FACTS[0].questions[0], "--json", "--device", "cpu")
    assert code == 0
    expected = memlayers.load_memory(memory, device="cpu").ask([FACTS[0].questions[0]])[0]
    assert json.loads(out) == {
        "question": FACTS[0].questions[0], "backbone": expected.backbone, "memory": expected.memory,
        "source": expected.source, "score": pytest.approx(expected.score), "threshold": expected.threshold,
        "text": expected.text,
    }  # fmt: skip


def test_ask_abstain_gives_one_answer_and_where_it_comes_from(command: Command, memory: Path):
    code, out, _ = command("ask", memory, FACTS[0].questions[0], "--abstain", "--device", "cpu")
    assert code == 0
    expected = memlayers.load_memory(memory, device="cpu").ask([FACTS[0].questions[0]])[0]
    answer, _, source = out.rstrip("\n").rpartition("\n  (")
    assert answer.strip() == expected.text.strip()
    assert source.startswith(f"source: {expected.source}; score {expected.score:.3f}, threshold ")


def test_a_piped_chat(command: Command, memory: Path):
    typed = "Where was Ann born?\n\n  Wo liegt Łódź?  \n".encode()
    code, out, _ = command("ask", memory, "--device", "cpu", typed=typed)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("> ")] == ["> Where was Ann born?", "> Wo liegt Łódź?"]
    assert out.count("without memory") == out.count("with memory  ") == 2


def test_a_piped_chat_in_json_is_nothing_but_json(command: Command, memory: Path):
    code, out, _ = command("ask", memory, "--json", "--device", "cpu", typed=b"Where was Ann born?\nWho?\n")
    assert code == 0
    assert [json.loads(line)["question"] for line in out.splitlines()] == ["Where was Ann born?", "Who?"]


def test_a_piped_chat_that_is_not_utf8(command: Command, memory: Path):
    code, _, err = command("ask", memory, "--json", "--device", "cpu", typed=b"Who?\ncaf\xe9?\n")
    assert code == 2 and err == "memlayers: standard input:2: not UTF-8; send text in UTF-8\n"


@pytest.mark.parametrize("end", ["", EOFError])
def test_a_chat_at_a_terminal(end: Any, command: Command, memory: Path, monkeypatch: pytest.MonkeyPatch):
    lines = iter(["Where was Ann born?", end])

    def answer(prompt: str) -> str:
        line = next(lines)
        if line is EOFError:
            raise EOFError
        return str(line)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(builtins, "input", answer)
    code, out, _ = command("ask", memory, "--device", "cpu")
    assert code == 0 and out.count("without memory") == 1


@pytest.fixture
def scores(command: Command, memory: Path, facts: Path, general: Path, tmp_path: Path) -> Path:
    """What `eval` writes about `memory`, with everything there is to score."""
    (tmp_path / "known.jsonl").write_text('{"question": "Where is Rome?", "answers": ["Italy", "in Italy"]}\n')
    out = tmp_path / "scores.json"
    code, said, err = command(
        "eval", memory, "--facts", facts, "--known", tmp_path / "known.jsonl", "--qa", tmp_path / "known.jsonl",
        "--text", general, "--out", out, "--report", tmp_path / "report", "--seed", 3, "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert code == 0 and "Traceback" not in err
    assert "recall" in said and "unseen_phrasing" in said
    return out


def test_eval_writes_the_rows_of_the_schema(scores: Path, memory: Path, facts: Path):
    read = json.loads(scores.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert set(read) == {"schema", "environment", "config", "rows", "curve", "examples"}
    assert read["schema"] == "memlayers.results/1"
    assert all(set(row) == ROW for row in read["rows"])
    rows = {(row["metric"], row["split"]): row for row in read["rows"]}
    assert len(rows) == len(read["rows"])
    assert set(rows) >= {
        ("recall", "backbone"), ("recall", "taught"), ("recall", "unseen_phrasing"),
        ("known_facts", "backbone"), ("known_facts", "memory"),
        ("qa_exact_match", "backbone"), ("qa_exact_match", "memory"),
        ("perplexity", "backbone"), ("perplexity", "memory"),
        ("identical_logits", "general_text"),
        ("exposures_per_fact", "all"), ("teach_seconds", "all"), ("peak_memory_bytes", "all"),
    }  # fmt: skip
    assert not rows["perplexity", "memory"]["higher_is_better"] and rows["recall", "taught"]["higher_is_better"]
    assert rows["recall", "taught"]["n"] == 2 and rows["peak_memory_bytes", "all"]["ci_low"] is None
    assert read["config"]["facts"] == str(facts) and read["config"]["memory"] == str(memory)
    assert {"commit", "torch", "transformers", "peft", "platform", "device", "date", "command"} <= set(
        read["environment"]
    )
    assert read["environment"]["command"].startswith("memlayers eval ")
    assert {"question", "answer", "backbone", "memory"} == set(read["examples"][0])
    assert read_results(scores).curve  # as teaching recorded it


def test_eval_scores_only_what_is_given(command: Command, memory: Path, general: Path, tmp_path: Path):
    out = tmp_path / "text.json"
    flags = ["--max-text-tokens", 8, "--device", "cpu", "--quiet"]
    assert command("eval", memory, "--text", general, "--out", out, *flags)[0] == 0
    rows = {(row.metric, row.split): row for row in read_results(out).rows}
    assert not {metric for metric, _ in rows} & {"recall", "known_facts", "qa_exact_match"}
    assert rows["identical_logits", "general_text"].n == 8


def test_known_facts_may_be_facts(command: Command, memory: Path, facts: Path, tmp_path: Path):
    out = tmp_path / "known.json"
    assert command("eval", memory, "--known", facts, "--out", out, "--device", "cpu", "--quiet")[0] == 0
    found = read_results(out).find("known_facts", "memory")
    assert found is not None and found.n == len(read_questions(facts)) == 4


def test_report_is_drawn_from_the_file_alone(command: Command, scores: Path, tmp_path: Path):
    again = tmp_path / "again"
    assert command("report", scores, "--out", again) == (0, f"the report is in {again}\n", "")
    assert (again / "report.md").read_bytes() == (tmp_path / "report" / "report.md").read_bytes()
    assert "unseen_phrasing" in (again / "report.md").read_text().replace("\\", "").replace(
        "unseen phrasing", "unseen_phrasing"
    )
    assert (again / "recall.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("places", "labels"),
    [
        (("one/results.json", "two/results.json"), ("one", "two")),
        (("same/gate.json", "same/no-gate.json"), ("gate", "no-gate")),
    ],
)
def test_several_results_are_set_side_by_side(
    places: tuple[str, ...], labels: tuple[str, ...], command: Command, scores: Path, tmp_path: Path
):
    paths = [tmp_path / place for place in places]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(scores.read_bytes())
    assert command("report", *paths, "--out", tmp_path / "both")[0] == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"compare.md", "compare.png"}
    head = (tmp_path / "both" / "compare.md").read_text()
    assert all(label in head for label in labels)


def test_demo_leaves_memory_results_and_report(
    command: Command, chat_backbone: Path, general: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from memlayers import demo

    for name, fewer in (("KNOWN_QUESTIONS", 4), ("WATCHED_QUESTIONS", 2), ("TEXT_TOKENS", 256)):
        monkeypatch.setattr(demo, name, fewer)
    settings = {**SMALL, "backbone": str(chat_backbone), "general_text": str(general), "gate": False, "device": "cpu"}
    _write_settings(tmp_path / "settings.yaml", **settings)
    out = tmp_path / "demo"
    code, said, _ = command("demo", "--config", tmp_path / "settings.yaml", "--facts", 3, "--out", out, "--quiet")
    assert code == 0 and f"memlayers ask {out / 'memory'}" in said
    assert {path.name for path in out.iterdir()} == {"memory", "results.json", "report.md", "recall.png"}
    rows = read_results(out / "results.json").rows
    assert {"recall", "known_facts", "perplexity", "identical_logits", "exposures_per_fact"} <= {r.metric for r in rows}
    assert command("ask", out / "memory", "Who?", "--device", "cpu")[0] == 0


# Exit codes


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (None, 0, ""),
        (memlayers.WorkError("it failed"), 1, "memlayers: it failed\n"),
        (memlayers.InputError("it is\nwrong"), 2, "memlayers: it is wrong\n"),
        (KeyboardInterrupt(), 130, "memlayers: interrupted\n"),
    ],
)
def test_exit_codes(
    raised: BaseException | None, code: int, said: str, command: Command, monkeypatch: pytest.MonkeyPatch
):
    def stored_facts(_: Path) -> list[Fact]:
        if raised is not None:
            raise raised
        return FACTS

    monkeypatch.setattr("memlayers.inference.folder.stored_facts", stored_facts)
    assert command("list", "anywhere")[::2] == (code, said)


# Plan


def test_plan_breaks_no_word_and_keeps_its_command_on_one_line(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = command("plan", "--backbone", "qwen2.5-7b", "--slots", "500000")
    assert code == 0
    recommended = out.split("Recommended:\n")[1]
    assert recommended.startswith("memlayers teach --backbone Qwen/") and recommended.count("\n") == 1
    prose = out[out.index("Weights:") : out.index("\nRecommended:")]
    assert max(map(len, prose.splitlines())) <= 60 and "bitsandbytes" in prose and "fragmentation" in prose


# Ctrl-C


def test_ctrl_c_is_130_and_one_line(command: Command, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from memlayers.teaching import teach

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(teach, "teach_facts", interrupt)
    assert command("teach", "--facts", facts, "--out", tmp_path / "m") == (130, "", "memlayers: interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_while_teaching_leaves_nothing(chat_backbone: Path, facts: Path, general: Path, tmp_path: Path):
    before = set(tmp_path.iterdir())
    settings = {**SMALL, "exposures": 10**6, "stop_at_recall": 2.0, "checkpoint_seconds": 1e9, "recall_sample": 1}
    _write_settings(tmp_path / "settings.yaml", **settings, gate=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "memlayers.cli", "teach", "--config", tmp_path / "settings.yaml", "--device", "cpu",
         "--backbone", chat_backbone, "--facts", facts, "--general-text", general, "--out", tmp_path / "memory"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell runs us with "&"
    )  # fmt: skip
    assert process.stderr is not None
    try:
        while not (line := process.stderr.readline()).startswith("Teaching"):
            assert line, "ended before teaching began"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "memlayers: interrupted\n")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "settings.yaml"}
