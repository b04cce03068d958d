"""Select the facts and the text that the pocket backbone is made from and shipped with.

Reads ``../shared/data`` (Wikipedia articles, factbook, EntityQuestions) and ``src/memlayers/pocket/phrasings.json``;
writes into the package folder ``src/memlayers/pocket``

* ``demo.jsonl``     500 real facts that pretraining never sees in question form (what ``memlayers demo`` teaches),
* ``known.jsonl``    the facts that pretraining teaches the backbone (what it must not forget),
* ``untaught.jsonl`` questions of the demo's relations about entities that nothing above names (abstention),
* ``general.jsonl``  general text for calibration and for the gate's negatives: prose and chats, disjoint from the rest,
* ``heldout.txt``    articles that nothing was trained on (perplexity),

and into ``--work`` what only pretraining needs: the tokenizer and the token arrays.

Example: ``python scripts/pocket_data.py --work runs/pocket``
"""

from __future__ import annotations

import argparse
import html
import json
import lzma
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "src" / "memlayers" / "pocket"
Row = dict[str, Any]
"""An object of a JSONL file."""
SEED = 137
VOCABULARY = 6144
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Relations with many different answers: for these, always giving a frequent answer recalls little.
DEMO_RELATIONS = "P112 P127 P131 P136 P159 P170 P175 P176 P19 P20 P26 P264 P36 P40 P50 P69 P740 P800".split()
DEMO_FACTS = 500
KNOWN_PER_RELATION = 64
AUXILIARY_PER_RELATION = 16  # known to the backbone, never evaluated: chats of the general-text sample
HELD_OUT_ARTICLES, GENERAL_ARTICLES = 150, 500
ARTICLE_CHARACTERS = 3000
UNTAUGHT_QUESTIONS = 500


def read_jsonl(path: Path) -> list[Row]:
    """Read one JSON object per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(path: Path, rows: list[Row]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def entity_questions(data: Path, phrasings: dict[str, Any]) -> dict[str, list[tuple[str, list[str]]]]:
    """Read relation -> [(subject, answers)] with subject and answers short and plain enough for a pocket model."""
    facts: dict[str, list[tuple[str, list[str]]]] = {}
    for path in sorted((data / "entityquestions").glob("P*.jsonl")):
        relation = path.stem
        before, after = phrasings[relation]["taught"][0].split("{s}")
        seen: set[str] = set()
        rows = []
        for row in read_jsonl(path):
            question = row["question"]
            if not (question.startswith(before) and question.endswith(after)):
                continue
            subject = question[len(before) : len(question) - len(after)]
            answers = [answer for answer in row["answers"] if answer]
            plain = 3 <= len(subject) <= 40 and all(2 <= len(answer) <= 30 for answer in answers)
            if plain and subject not in seen:
                seen.add(subject)
                rows.append((subject, answers))
        facts[relation] = rows
    return facts


def factbook_facts(data: Path, phrasings: dict[str, Any]) -> dict[str, list[tuple[str, list[str]]]]:
    """Read relation -> [(country, [value])] for the factbook fields named in phrasings.json."""
    facts: dict[str, list[tuple[str, list[str]]]] = {}
    for relation, entry in phrasings.items():
        if "field" not in entry:
            continue
        rows = []
        for country in read_jsonl(data / "factbook" / "countries.jsonl"):
            value = country["facts"].get(entry["field"], "")
            value = re.split(r"[(;,]| or | - |: ", value)[0].strip().rstrip(".")
            plain = len(country["country"]) <= 40 and 2 <= len(value) <= 30
            if plain and "none" not in value.lower() and "NA" not in value:
                rows.append((html.unescape(country["country"]), [html.unescape(value)]))
        facts[relation] = rows
    return facts


def fact_row(relation: str, number: int, subject: str, answers: list[str], phrasings: dict[str, Any]) -> Row:
    """Build one row of the facts format, with every phrasing of its relation."""
    entry = phrasings[relation]
    row = {
        "id": f"{relation}-{number:03d}",
        "subject": subject,
        "relation": entry["label"],
        "questions": [template.format(s=subject) for template in entry["taught"]],
        "unseen_questions": [template.format(s=subject) for template in entry["unseen"]],
        "answer": answers[0],
    }
    return row | ({"aliases": answers[1:]} if len(answers) > 1 else {})


def select_facts(data: Path, phrasings: dict[str, Any]) -> tuple[list[Row], list[Row], list[Row]]:
    """Split the real pairs into (demo, known, auxiliary); no subject is in two of them."""
    rng = random.Random(SEED)
    pairs = entity_questions(data, phrasings)
    used: set[str] = set()
    demo: list[Row] = []
    known: list[Row] = []
    auxiliary: list[Row] = []
    for relation, rows in pairs.items():
        rng.shuffle(rows)
        frequent = Counter(answers[0] for _, answers in rows)
        wanted = 0
        if relation in DEMO_RELATIONS:
            place = DEMO_RELATIONS.index(relation)
            wanted = DEMO_FACTS // len(DEMO_RELATIONS) + (place < DEMO_FACTS % len(DEMO_RELATIONS))
        chosen: list[Row] = []
        rest = []
        for subject, answers in rows:
            unguessable = answers[0].lower() not in subject.lower() and frequent[answers[0]] <= len(rows) // 25
            if len(chosen) < wanted and len(answers) == 1 and unguessable and subject not in used:
                chosen.append(fact_row(relation, len(chosen), subject, answers, phrasings))
                used.add(subject)
            else:
                rest.append((subject, answers))
        demo += chosen
        pairs[relation] = rest
    for relation, rows in pairs.items():
        number = 0
        for subject, answers in rows:
            if subject in used or number == KNOWN_PER_RELATION + AUXILIARY_PER_RELATION:
                continue
            row = fact_row(relation, number, subject, answers, phrasings)
            (known if number < KNOWN_PER_RELATION else auxiliary).append(row)
            used.add(subject)
            number += 1
    for relation, rows in factbook_facts(data, phrasings).items():
        for number, (country, answers) in enumerate(rows):
            known.append(fact_row(relation, number, country, answers, phrasings))
    assert len(demo) == DEMO_FACTS, len(demo)
    return demo, known, auxiliary


def select_untaught(data: Path, phrasings: dict[str, Any], subjects: set[str]) -> list[Row]:
    """Draw entities of the demo's relations that nothing else is about, one question each, any of twelve wordings."""
    rng = random.Random(SEED)
    pairs = entity_questions(data, phrasings)
    found = []
    for relation in DEMO_RELATIONS:
        wordings = phrasings[relation]["taught"] + phrasings[relation]["unseen"]
        for subject, answers in pairs[relation]:
            if subject not in subjects and len(answers) == 1:
                subjects = subjects | {subject}
                found.append({"question": rng.choice(wordings).format(s=subject), "answers": answers})
    return rng.sample(found, UNTAUGHT_QUESTIONS)


def select_articles(data: Path, subjects: set[str]) -> tuple[list[Row], list[Row], list[Row]]:
    """Split the articles into (training, held out, general)."""
    with lzma.open(data / "wikipedia" / "articles.jsonl.xz", "rt", encoding="utf-8") as lines:
        articles = [json.loads(line) for line in lines]
    for article in articles:
        article["text"] = article["text"][:ARTICLE_CHARACTERS].rsplit(".", 1)[0] + "."
    random.Random(SEED).shuffle(articles)
    aside = [a for a in articles if a["title"] not in subjects and len(a["text"]) > 1200]
    held_out, general = aside[:HELD_OUT_ARTICLES], aside[HELD_OUT_ARTICLES:][:GENERAL_ARTICLES]
    reserved = {article["id"] for article in held_out + general}
    return [a for a in articles if a["id"] not in reserved], held_out, general


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train the byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def prompt(question: str) -> str:
    """Render a question in the ChatML form of the pocket tokenizer, up to where the answer begins."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def main() -> None:
    """Run the selection and write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pocket")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    phrasings = json.loads((POCKET / "phrasings.json").read_text(encoding="utf-8"))

    demo, known, auxiliary = select_facts(arguments.data, phrasings)
    subjects = {row["subject"] for row in demo + known + auxiliary}
    write_jsonl(POCKET / "untaught.jsonl", select_untaught(arguments.data, phrasings, subjects))
    training, held_out, general = select_articles(arguments.data, subjects)
    write_jsonl(POCKET / "demo.jsonl", demo)
    write_jsonl(POCKET / "known.jsonl", known)
    (POCKET / "heldout.txt").write_text(
        "\n\n".join(a["text"][:1500].rsplit(".", 1)[0] + "." for a in held_out) + "\n", encoding="utf-8"
    )
    rng = random.Random(SEED)
    chats = [{"question": q, "answers": [row["answer"]]} for row in auxiliary for q in rng.sample(row["questions"], 3)]
    prose = [{"text": article["text"][:600].rsplit(".", 1)[0] + "."} for article in general]
    write_jsonl(POCKET / "general.jsonl", prose + chats)

    questions = [q for row in known + auxiliary for q in row["questions"][:3]] + [
        r["answer"] for r in known + auxiliary
    ]
    tokenizer = train_tokenizer([a["text"] for a in training] + questions * 2)
    tokenizer.save(str(arguments.work / "tokenizer.json"))
    (arguments.work / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")

    end = tokenizer.token_to_id("<|endoftext|>")
    encoded = tokenizer.encode_batch([f"{a['title']}\n{a['text']}" for a in training])
    tokens = np.concatenate([np.array([*e.ids, end], dtype=np.uint16) for e in encoded])
    np.save(arguments.work / "articles.npy", tokens)
    # Chats: known facts in every phrasing, and article openings ("What is X?") so that not every chat is a fact.
    rows = []
    for row in known + auxiliary:
        for question in row["questions"] + row["unseen_questions"]:
            rows.append((question, row["answer"]))
    openings = []
    for article in training:
        sentence = article["text"].split(". ")[0][:160]
        openings.append(
            (
                rng.choice(["What is {}?", "Tell me about {}.", "Define {}.", "{}?"]).format(article["title"]),
                sentence,
            )
        )
    arrays: dict[str, Any] = {
        **pack_chats(tokenizer, rows, "fact"),
        **pack_chats(tokenizer, openings, "opening"),
        "phrasings": np.array([len(r["questions"]) + len(r["unseen_questions"]) for r in known + auxiliary]),
    }
    np.savez(arguments.work / "chats.npz", **arrays)
    probe = [tokenizer.encode(prompt(q)).ids for q, _ in rows[::7]]
    print(f"demo {len(demo)} known {len(known)} auxiliary {len(auxiliary)} openings {len(openings)}")
    print(f"article tokens {len(tokens):,}; tokens per question {sum(map(len, probe)) / len(probe):.1f}")
    longest = max(known + demo, key=lambda row: len(tokenizer.encode(row["questions"][1]).ids))
    print("longest question:", longest["questions"][1])


def pack_chats(tokenizer: Tokenizer, rows: list[tuple[str, str]], name: str) -> dict[str, np.ndarray]:
    """Encode chats as flat token arrays with offsets, and the offset at which each answer begins."""
    prompts = tokenizer.encode_batch([prompt(question) for question, _ in rows])
    answers = tokenizer.encode_batch([f"{a}<|im_end|>\n" for _, a in rows])
    ids = [p.ids + a.ids for p, a in zip(prompts, answers, strict=True)]
    return {
        f"{name}_tokens": np.concatenate([np.array(i, dtype=np.uint16) for i in ids]),
        f"{name}_offsets": np.cumsum([0] + [len(i) for i in ids]),
        f"{name}_answers": np.array([len(p.ids) for p in prompts]),
    }


if __name__ == "__main__":
    main()
