"""The relevance gate, made before a single value is written (design/recipe.md, "Gate first").

It needs nothing but the bare backbone, and has two parts, each hard, so that a closed gate leaves the backbone's
logits as they are, to the bit; teaching then happens under it. `index_subjects`: a memory is read from a stored
subject's name on (tuner/subjects.py). `train_gates`: a small network tells the facts' contexts, question and answer,
from general text, where such a name may fall too.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.calibrate import LayerFeatures
from memlayers.encoding import encode_prompt
from memlayers.facts import Fact, Question
from memlayers.generate import generate_answers, without_memory
from memlayers.guesses import belief, belief_exceeded_by, count_guesses, place_of
from memlayers.metrics import exact_match
from memlayers.teaching import GateReport
from memlayers.tuner.model import memory_layers
from memlayers.tuner.subjects import (
    CAPITAL,
    DIGIT,
    GOES_ON,
    LEADS,
    PART,
    SMALL,
    SubjectIndex,
    leaders,
    marks_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_RAISED = 1.5  # logits; one odd token shall not shut the gate on the facts
FURTHER_REACH = 32  # tokens beyond what a taught phrasing and its answer took: other phrasings are longer
UNSURE = 0.005  # share of stored facts, in wordings not shown, that may be taken for unknown
MARGIN = 4  # of confidence: in wordings of a kind that teaching did not use an answer is less sure (docs/LOG.md)
RAISED = 0.015  # the same, where questions about what was never taught would otherwise be answered
MISTAKEN = 0.006  # share of the backbone's wrong answers that may be taken for knowledge
MOST_CONTEXTS = 2000  # of the facts, that calibration and the gates are shown
MOST_SETTLED = 500  # facts asked for the memory's threshold of abstention
MOST_GUESSED = 1000  # questions asked for the backbone's: few of its wrong answers are confident
_SPACE_MARKS = ("Ġ", "▁", " ")  # how vocabularies write a word's leading space
CONTRADICTED = 0.01  # share of facts beside whose names a kind of token may stand and still tell of longer names
RARE = 100  # a word is part of a nameless subject where at most one in so many facts has it


def train_gates(
    model: Any,
    adapter: str,
    facts: Sequence[LayerFeatures],
    general: Sequence[LayerFeatures],
    *,
    passages: int = 0,
    sequences: Sequence[Sequence[int]] = (),
    threshold: float = 1.0,
    steps: int = 2000,
    batch_size: int = 1024,
    learning_rate: float = 6e-3,
    seed: int = 0,
    progress: Any = None,
) -> list[GateReport]:
    """Trains each memory layer's gate to open on fact contexts and to stay closed on general text.

    A memory that knows its subjects has one gate, at its first layer. It need not tell entities apart, so of the
    general text the passages alone are its negatives (where there are any). Its positives are, of the facts' contexts,
    the tokens behind the subject (the gate is not asked about others), and the general text's chats:
    questions of every kind, so that it does not close on a kind of question that the facts had none of.

    Class-balanced binary cross-entropy with Adam, as in the seed. A tenth of the sequences is held out for the report.

    Args:
        model: a PEFT model whose memory has gates.
        adapter: name of the memory.
        facts: features of the facts' contexts, one entry per memory layer.
        general: features of general text, likewise.
        passages: so many of the general text's sequences, the first ones, are running text rather than chats.
        sequences: the token ids of the facts' contexts; needed where the memory knows its subjects.
        threshold: the logit above which a gate is open. It is raised, by at most `MOST_RAISED`, to the largest logit on
            held-out passages: on running text a gate has no business at all.
        steps: optimizer steps per layer.
        batch_size: tokens per step, half of each class.
        learning_rate: Adam's at the start; it falls linearly to zero.
        seed: of the order of the tokens.
        progress: called with 1 after each step.

    Returns:
        One report per gate.
    """
    reports = []
    layers = memory_layers(model, adapter)
    chats = facts[0].inputs[:0]
    index: Any = layers[0].memlayers_subjects[adapter] if adapter in layers[0].memlayers_subjects else None
    if index is not None:
        kept = _behind_the_subject(index, facts[0], sequences)
        layers, facts = layers[:1], [_rows(facts[0], kept)]
        chats = general[0].inputs[general[0].sequence >= passages] if passages else chats
        general = [_rows(general[0], general[0].sequence < passages) if passages else general[0]]
    for layer, positive, negative in zip(layers, facts, general, strict=True):
        gate: Any = layer.memlayers_gate[adapter]
        device = gate.mean.device
        generator = torch.Generator().manual_seed(seed)
        train_positive, held_positive = _held_out(positive)
        train_negative, held_negative = _held_out(negative)
        train_positive = torch.cat([train_positive, chats])
        rows = torch.cat([train_positive, train_negative]).float()
        gate.mean.copy_(rows.mean(0))
        gate.std.copy_(rows.std(0).clamp_min(1e-6))
        half = batch_size // 2
        labels = torch.cat([torch.ones(half), torch.zeros(half)]).to(device)
        parameters = [parameter.requires_grad_(True) for parameter in gate.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            picked = [
                source[torch.randint(len(source), (half,), generator=generator)]
                for source in (train_positive, train_negative)
            ]
            loss = F.binary_cross_entropy_with_logits(gate(torch.cat(picked).to(device)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress(1)
        for parameter in parameters:
            parameter.requires_grad_(False)
        largest = _largest_on_passages(gate, negative, passages)
        settled = min(max(threshold, largest), threshold + MOST_RAISED)
        gate.threshold.fill_(settled)
        gate.trained.fill_(1)
        opened = [gate.is_open(rows.to(device)).float().mean().item() for rows in (held_positive, held_negative)]
        reports.append(GateReport(settled, *opened))
    return reports


@dataclass(frozen=True, slots=True)
class Subjects:
    """How to know the subjects of some facts by their tokens.

    Attributes:
        runs: the distinct runs of tokens that spell them, at least one, each with the run that stands for its subject.
        reach: tokens from a run's last one to the longest context's end, and `FURTHER_REACH` more.
        marks: what every token of the vocabulary says of a name beside it (tuner/subjects.py), uint8 [v].
        of_fact: the runs that spell each fact's subject.
    """

    runs: dict[tuple[int, ...], tuple[int, ...]]
    reach: int
    marks: Tensor
    of_fact: list[set[tuple[int, ...]]] = field(default_factory=list)


def subject_runs(
    tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], contexts: Sequence[Sequence[Sequence[int]]]
) -> Subjects:
    """Finds the runs of tokens that spell the facts' subjects.

    The subject of a phrasing is the fact's, where the phrasing names it; otherwise what lies between the first and the
    last of its words that hardly any other fact has; otherwise the whole question. Outer punctuation is left out:
    tokenizers join it with what follows. Each run is taken as the phrasings hold it, and as it would begin a text
    and follow a space.

    Args:
        tokenizer: the backbone's.
        facts: what will be taught.
        contexts: for each fact and each of its taught phrasings the token ids of prompt and answer.
    """
    words, marks = facts_words(facts), token_marks(tokenizer)
    each = [subject_runs_of(tokenizer, *pair, words, len(facts), marks) for pair in zip(facts, contexts, strict=True)]
    withdraw_marks(marks, each)
    spelled = [found.spelled_out(marks) for found in each]
    runs = {run: subject for found in reversed(spelled) for run, subject in found.items()}  # the first fact's counts
    reach = max(found.reach for found in each)
    return Subjects(runs, reach, marks, [set(found) for found in spelled])


def subject_names(facts: Sequence[Fact]) -> list[list[str]]:
    """What names the subject in each of the facts' phrasings; see `subject_runs`."""
    words = facts_words(facts)
    return [[_name(fact, question, words, len(facts)) for question in fact.questions] for fact in facts]


class NameInPrompt(NamedTuple):
    """Where a phrasing's prompt, token ids, holds its subject's name, and what stands beside it.

    Attributes:
        prompt: the token ids.
        start: of the name.
        end: of the name, exclusive.
        follower: the token behind it, or -1.
        leader: the one that would say that it had begun before (`tuner.subjects.leaders`), or -1.
    """

    prompt: list[int]
    start: int
    end: int
    follower: int
    leader: int


class FactRuns(NamedTuple):
    """How one fact's subject is spelled.

    Attributes:
        runs: its runs of tokens, each with the one that stands for the subject.
        odd: the phrasings where a token beside the name says that the name is a longer one.
        reach: as `Subjects.reach`.
    """

    runs: dict[tuple[int, ...], tuple[int, ...]]
    odd: list[NameInPrompt]
    reach: int

    def spelled_out(self, marks: Tensor) -> dict[tuple[int, ...], tuple[int, ...]]:
        """The runs, and with them the names that these phrasings seem to hold by the marks: their own, but longer."""
        runs = dict(self.runs)
        for prompt, start, end, _, _ in self.odd:
            says = marks_of(marks, torch.tensor(prompt))
            while end < len(prompt) and says[end] & GOES_ON:
                end += 1
            while (led := int(leaders(marks, torch.tensor([prompt]))[0, start])) >= 0 and says[led] & LEADS:
                start = min(led, start - 1)
            runs.setdefault(tuple(prompt[start:end]), next(iter(self.runs.values())))
        return runs


def facts_words(facts: Sequence[Fact]) -> Counter[str]:
    """How many facts each word of their questions is in."""
    return Counter(word for fact in facts for word in {w for q in fact.questions for w in _words(q)})


def subject_runs_of(
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    contexts: Sequence[Sequence[int]],
    words: Counter[str],
    facts: int,
    marks: Tensor,
) -> FactRuns:
    """As `subject_runs`, for one fact among others.

    Args:
        tokenizer: the backbone's.
        fact: the fact.
        contexts: for each of its taught phrasings the token ids of prompt and answer.
        words: `facts_words` of all facts.
        facts: how many there are.
        marks: `token_marks`.
    """
    runs: dict[tuple[int, ...], tuple[int, ...]] = {}
    odd = []
    core = _without_outer_punctuation(fact.subject)
    stands = tuple(tokenizer(core, add_special_tokens=False)["input_ids"]) if core else ()
    reach = 1
    for question, ids in zip(fact.questions, contexts, strict=True):
        name = _name(fact, question, words, facts)
        prompt = encode_prompt(tokenizer, question)
        span = name_span(tokenizer, prompt, name, question)
        if span is None:  # a tokenizer that does not write what it read
            span = 0, len(prompt) - 1  # the memory is read from the token behind it on
        follower = prompt[span[1]] if span[1] < len(prompt) else -1
        led = int(leaders(marks, torch.tensor([prompt]))[0, span[0]])
        leader = prompt[led] if led >= 0 else -1
        if int(marks_of(marks, torch.tensor(follower))) & GOES_ON or int(marks_of(marks, torch.tensor(leader))) & LEADS:
            odd.append(NameInPrompt(prompt, *span, follower, leader))
        reach = max(reach, len(ids) - span[1] + 1)
        spelt = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (name, f" {name}")]
        spelt = [run for run in (*spelt, tuple(prompt[slice(*span)])) if run]
        stands = stands or spelt[0]  # one for all spellings: a name that begins a sentence is the same name
        for run in spelt:
            runs.setdefault(run, stands)
    return FactRuns(runs, odd, reach + FURTHER_REACH)


def index_subjects(model: Any, adapter: str, subjects: Subjects) -> None:
    """Fills the memory's index of subjects with what `subject_runs` found."""
    index: Any = memory_layers(model, adapter)[0].memlayers_subjects[adapter]
    index.fill(subjects.runs, subjects.reach, subjects.marks)


def token_marks(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """What each token is and says of a name beside it (tuner/subjects.py), uint8 [v + 1]; the last stands for none.

    A name goes on in the rest of its word, and in a word with a capital or a digit; it had begun in the beginning of
    its word, and in a word with a capital (a year before a name seldom belongs to it).
    """
    marks = torch.zeros(len(tokenizer) + 1, dtype=torch.uint8)
    for number in range(len(tokenizer)):
        start = str(tokenizer.decode([number])).lstrip()[:1]
        if not start.isalnum():
            continue
        if str(tokenizer.convert_ids_to_tokens(number) or "")[:1] not in _SPACE_MARKS:
            marks[number] = PART | GOES_ON | LEADS
        elif start.isdigit():
            marks[number] = DIGIT | GOES_ON
        else:
            marks[number] = CAPITAL | GOES_ON | LEADS if start.isupper() else SMALL
    return marks


def withdraw_marks(marks: Tensor, found: Sequence[FactRuns]) -> None:
    """Takes back, in place, what the facts' own phrasings contradict.

    What a kind of token says depends on the language (German joins words, others do not space them): where one kind
    stands beside the subjects of more than `CONTRADICTED` of the facts all the same, none of its tokens says so any
    more. Of fewer facts the odd phrasings' names are spelled out (`FactRuns.spelled_out`).
    """
    for says, tokens in (
        (GOES_ON, [[where.follower for where in one.odd] for one in found]),
        (LEADS, [[where.leader for where in one.odd] for one in found]),
    ):
        told = [marks_of(marks, torch.tensor(each, dtype=torch.int64)) for each in tokens]
        for kind in (PART, CAPITAL | DIGIT):
            facts = sum(bool(((each & kind != 0) & (each & says != 0)).any()) for each in told)
            if facts > CONTRADICTED * len(found):
                marks[(marks & kind != 0)] &= ~says & 0xFF


def sampled_contexts(contexts: Sequence[list[int]], seed: int) -> list[list[int]]:
    """At most `MOST_CONTEXTS` of the facts' contexts, token ids of questions and answers, in an order of their own."""
    return random.Random(seed).sample(contexts, min(len(contexts), MOST_CONTEXTS))


def settling_questions(facts: Sequence[Fact], seed: int, shown: Sequence[Collection[int]] = ()) -> list[Question]:
    """What `settle_thresholds` is given: a question about each of at most `MOST_SETTLED` facts.

    Args:
        facts: what is stored.
        seed: of the choice.
        shown: per fact the places of the phrasings that teaching showed, which come last; none where not known.
    """
    rng = random.Random(f"{seed}:settle")
    asked = []
    for i in rng.sample(range(len(facts)), min(len(facts), MOST_SETTLED)):
        questions, seen = facts[i].questions, shown[i] if shown else ()
        fresh = [question for j, question in enumerate(questions) if j not in seen]
        asked.append(Question(rng.choice(fresh or questions), facts[i].answers))
    return asked


def guessing_questions(facts: Sequence[Fact], seed: int) -> list[list[Question]]:
    """What `settle_thresholds` puts to the bare backbone: questions per fact, at most `MOST_GUESSED` in all."""
    rng = random.Random(f"{seed}:guess")
    chosen = rng.sample(list(facts), min(len(facts), MOST_GUESSED))
    each, over = divmod(MOST_GUESSED, max(1, len(chosen)))
    return [
        [Question(q, fact.answers) for q in rng.sample(fact.questions, min(each + (i < over), len(fact.questions)))]
        for i, fact in enumerate(chosen)
    ]


def settle_thresholds(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    adapter: str,
    stored: Sequence[Question],
    guessing: Sequence[Sequence[Question]],
    negatives: Sequence[Question] = (),
    *,
    progress: Any = None,
) -> tuple[float, float]:
    """Settles, after teaching, how confident an answer must be to be worth giving (`session.Memory.ask`).

    The memory's: all but `UNSURE` of the stored facts' answers reach `MARGIN` times as much; it can be low, since the
    gate keeps nearly all else out. Negatives that come through it raise the threshold above their answers, as far as
    all but `RAISED` of the stored facts' reach it. The backbone's: all but `MISTAKEN` of the wrong answers that it
    gives of its own to questions about these facts stay below it; it was not taught them, so they are questions as of
    entities that nobody taught. An answer is the less believed the more often it was such a wrong guess (guesses.py).

    Args:
        model: a PEFT model whose memory knows its subjects, taught.
        tokenizer: the backbone's.
        adapter: name of the memory.
        stored: questions about taught facts, best in wordings that teaching did not show, for the memory.
        guessing: per fact, questions about it for the bare backbone (`guessing_questions`).
        negatives: questions about what was never taught, for both.
        progress: called with the number of questions done after each batch, with the memory and without.

    Returns:
        The memory's threshold and the backbone's, which are also stored with the index, as are the wrong guesses.
    """
    to_memory = [each.question for each in (*stored, *negatives)]
    to_backbone = [*guessing, *([each] for each in negatives)]
    recalled = generate_answers(model, tokenizer, to_memory, progress=progress)
    with without_memory(model):
        put = [each.question for fact in to_backbone for each in fact]
        guessed = iter(generate_answers(model, tokenizer, put, progress=progress))
    scores = torch.tensor([answer.confidence if answer.opened else 0.0 for answer in recalled])
    sure, others = scores[: len(stored)], scores[len(stored) :]
    answered = [[(next(guessed), each.answers) for each in fact] for fact in to_backbone]
    wrong = [[given for given, answers in fact if not exact_match(given.text, answers)] for fact in answered]
    guesses = count_guesses([given.text for given in fact] for fact in wrong)
    # Each is believed as far as other facts' guesses allow: a new question's own is not among them either.
    believed = [belief(given.confidence, int(guesses[place_of(given.text)]) - 1) for fact in wrong for given in fact]
    index: Any = memory_layers(model, adapter)[0].memlayers_subjects[adapter]
    least, most = sure.quantile(UNSURE) / MARGIN, sure.quantile(RAISED)
    through = others[(others >= least) & (others < most)]
    index.thresholds[0] = torch.nextafter(through.max(), most) if len(through) else least
    index.thresholds[1] = belief_exceeded_by(MISTAKEN, believed)
    index.guesses.copy_(guesses)
    memory, backbone = index.thresholds.tolist()
    return memory, backbone


def _name(fact: Fact, question: str, words: Counter[str], facts: int) -> str:
    core = _without_outer_punctuation(fact.subject)
    forms = [core, core[:1].upper() + core[1:]] if core else []  # a subject may begin a sentence
    for pattern in (_whole, re.escape):  # a word of its own; or else within one, as some languages have it
        for form in forms:
            if re.search(pattern(form), question):
                return form
    rare = [m for m in re.finditer(r"\w+", question) if words[m.group()] <= max(1, facts // RARE)]
    return question[rare[0].start() : rare[-1].end()] if rare else _without_outer_punctuation(question) or question


def _whole(name: str) -> str:
    """A pattern of the name, but for places within a word."""
    return rf"(?<!\w){re.escape(name)}(?!\w)"


def _without_outer_punctuation(text: str) -> str:
    return re.sub(r"^\W+|\W+$", "", text)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def name_span(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], name: str, question: str = ""
) -> tuple[int, int] | None:
    """Start and end, exclusive, of the shortest run of tokens whose text holds the name; None where none does.

    Of several places the first one that is a word of its own, or else the first, counts; within the question, where the
    text holds that (a chat template has words of its own).
    """

    def held(start: int, end: int) -> str:
        return str(tokenizer.decode(list(ids[start:end])))

    text = held(0, len(ids))
    begins = max(0, text.rfind(question))
    places = [found.start() for found in re.finditer(re.escape(name), text)]
    whole = {found.start() for found in re.finditer(_whole(name), text)}
    if not places:
        return None
    place = min(places, key=lambda start: (start < begins, start not in whole, start))
    before = places.index(place)
    end = _first(len(ids), lambda e: held(0, e).count(name) > before)
    return end - _first(end, lambda n: name in held(end - n, end)), end


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The least number from 1 to `most` for which `holds`; it holds for `most`, and from the least on."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _behind_the_subject(index: SubjectIndex, features: LayerFeatures, sequences: Sequence[Sequence[int]]) -> Any:
    """Bool per row of the features: a token of a context that may read, were the gate open."""
    order = torch.unique_consecutive(features.sequence).tolist()
    device = index.fingerprints.device
    contexts = [torch.tensor([list(sequences[i])], device=device) for i in order]
    return torch.cat([index.subjects_in(ids)[0] != 0 for ids in contexts]).cpu()


def _rows(features: LayerFeatures, kept: Any) -> LayerFeatures:
    return replace(features, inputs=features.inputs[kept], sequence=features.sequence[kept])


@torch.no_grad()
def _largest_on_passages(gate: Any, general: LayerFeatures, passages: int) -> float:
    """The gate's largest logit on the held-out passages; minus infinity where there are none."""
    rows = general.inputs[_is_held_out(general) & (general.sequence < passages)]
    return float(gate(rows.to(gate.mean.device)).max()) if len(rows) else -math.inf


def _held_out(features: LayerFeatures) -> tuple[Tensor, Tensor]:
    """Splits the rows by sequence; where there are too few to hold any out, all are in both parts."""
    held = _is_held_out(features)
    return features.inputs[~held], features.inputs[held] if bool(held.any()) else features.inputs


def _is_held_out(features: LayerFeatures) -> Tensor:
    """Bool per row: every tenth sequence is held out (none where there are fewer than ten)."""
    return features.sequence % 10 == 9
