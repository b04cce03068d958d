"""The sections of the settings: data, memory, gate, schedule, optimizer, machine. Loads no torch.

A section's defaults stand here and nowhere else. The figures that chose them are in docs/LOG.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from memlayers.config.options import at_least, check_section, not_negative, option, positive, share
from memlayers.utils.errors import InputError


class Shape(NamedTuple):
    """The size of a memory: sub-keys per half, heads, and the width of a head's query (None: hidden size // heads)."""

    sub_keys: int
    heads: int
    key_dim: int | None


SHAPES = {"addressed": Shape(384, 8, 64), "dense": Shape(224, 1, None)}
"""The size of a memory where nothing else is asked for, by its recipe (docs/LOG.md)."""


@dataclass
class MemorySettings:
    """How a memory is built. `tuner.MemoryConfig` has these fields too, and those that a saved memory needs besides."""

    recipe: Literal["addressed", "dense"] = option(
        "addressed",
        "addressed: only the values learn; dense: all does. With addressed, addressing is calibrated and frozen; with "
        "dense, the v0.2 reference recipe, query, sub-keys and a gated output learn beside the value pool.",
    )
    layers: list[int] | None = option(
        None,
        "Layers that get a memory, as 6,14,22. Numbered from 0; 6, 14, 22 of 28 scaled to the backbone's depth if not "
        "given.",
        shown="three",
    )
    sub_keys: int | None = option(
        None,
        "Sub-keys per half; squared, the slots. 384 (addressed) or 224 (dense) if not given.",
        check=at_least(1),
        shown="384",
    )
    heads: int | None = option(
        None,
        "Lookups per token and layer. 8 (addressed) or 1 (dense) if not given.",
        check=at_least(1),
        shown="8",
    )
    top_k: int = option(8, "Slots read per head.", check=at_least(1))
    key_dim: int | None = option(
        None,
        "Width of a head's query, even. 64 (addressed) or hidden size // heads (dense) if not given.",
        shown="64",
    )
    pool_dtype: Literal["float32", "bfloat16", "float16", "int8"] = option(
        "float32", "Storage of the value pool. int8 has a float32 scale per row."
    )
    subject_weight: float = option(
        2.0,
        "Subject's weight in a query. Against 1 of the hidden state: a direction of the subject's own, so that "
        "all wordings about one subject read nearly the same slots; 0 for none; addressed recipe, where the gate knows "
        "subjects.",
        check=not_negative,
    )
    temperature: float = option(20.0, "Factor on the scores before the softmax.", flag=None, check=positive)
    qk_norm: bool = option(
        True,
        "Cosine scores, each half normalised (Berges et al. 2024, section 2.3); plain products otherwise.",
        flag=None,
    )
    load_balance: float = option(
        0.0,
        "Weight of the loss that spreads reads over the sub-keys; needs trainable addressing.",
        flag=None,
        check=not_negative,
    )
    protectable: bool = option(False, "The pool has room for a mark per slot that keeps it at zero.", flag=None)

    def __post_init__(self) -> None:
        check_section(self)
        shape = self.shape
        if self.top_k > shape.sub_keys:
            raise InputError(f"top_k {self.top_k} exceeds the {shape.sub_keys} sub_keys")
        if shape.key_dim is not None and (shape.key_dim < 2 or shape.key_dim % 2):
            raise InputError(
                f"key_dim is {self.key_dim!r}: it must be an even number from 2, two halves of equal width"
            )
        if self.layers is not None and (
            not self.layers or min(self.layers) < 0 or len(set(self.layers)) < len(self.layers)
        ):
            raise InputError(f"layers is {self.layers!r}: give a list of distinct layer numbers, from 0")

    @property
    def shape(self) -> Shape:
        """The memory's size, settled by the recipe where nothing is given."""
        given = {"sub_keys": self.sub_keys, "heads": self.heads, "key_dim": self.key_dim}
        return SHAPES[self.recipe]._replace(**{name: value for name, value in given.items() if value is not None})


FURTHER_SCOPE: Final = 32
"""The least scope, in tokens, beyond the end of the longest stored answer; so the scope tells how long answers are."""


@dataclass(frozen=True, slots=True)
class QueryConfig:
    """How queries are learned after calibration, where subjects have several facts (teaching/learned_queries.py)."""

    learned: bool = option(
        True,
        "Learn queries where subjects have several facts. So that what is asked of a subject chooses the slots; the "
        "addressed recipe, where queries carry subjects.",
        flag=None,
    )
    rank: int = option(32, "Of the change.", flag=None, check=at_least(1))
    steps: int = option(600, "Optimizer steps, per memory layer.", flag=None)
    batch_size: int = option(256, "Places in the answers of facts, per step.", flag=None, check=at_least(2))
    places: int = option(4, "Tokens of an answer that are learned from, at most.", flag=None, check=at_least(1))
    rate: float = option(3e-3, "Adam's learning rate.", flag=None, check=positive)
    temperature: float = option(0.05, "Of the cosines that are compared.", flag=None, check=positive)
    facts: int = option(2000, "Facts that are learned from, at most.", flag=None, check=at_least(2))
    wordings: int = option(8, "Wordings of a fact that are learned from, at most.", flag=None, check=at_least(2))

    def __post_init__(self) -> None:
        check_section(self)


@dataclass(frozen=True, slots=True)
class MentionConfig:
    """How the surface forms of the stored subjects are found (linking/mention_forms.py)."""

    folded: bool = option(
        True,
        "Find names in any spelling of their letters: whatever their case, accents, punctuation and spaces.",
        flag=None,
    )
    further_scope: int = option(
        FURTHER_SCOPE,
        "Tokens of scope beyond what a taught wording and its answer took: other wordings are longer.",
        flag=None,
        check=at_least(FURTHER_SCOPE),
    )
    contradicted: float = option(
        0.01,
        "Share of the facts beside whose mentions a kind of token may stand and still tell of longer names.",
        flag=None,
    )
    rare: int = option(
        100, "A word is part of a subject without a name where at most one in this many facts has it.", flag=None
    )


@dataclass(frozen=True, slots=True)
class RelationConfig:
    """How the check of what is asked is fitted (gating/relations.py)."""

    examples: int = option(
        1500, "Taught questions that it is fitted to, at most; equal wordings are read once.", flag=None
    )
    folds: int = option(
        4, "Parts of the wordings that the threshold is settled on, each by keys made of the others.", flag=None
    )
    refused: float = option(
        0.02, "Share of stored facts, in wordings that the keys were not made from, that may be refused.", flag=None
    )
    accepted: float = option(
        0.1, "Share of questions for another relation that pass where the facts' own leave room for it.", flag=None
    )
    least_held_out: int = option(
        50, "Questions that the threshold rests on, at least; with fewer nothing is refused.", flag=None
    )
    shrinkage: float = option(
        1.0, "Of the scatter towards a ball, in units of its mean variance (Ledoit and Wolf 2004).", flag=None
    )


@dataclass(frozen=True, slots=True)
class AbstentionConfig:
    """From which confidence on an answer is worth giving (gating/abstention.py)."""

    unsure: float = option(
        0.005, "Share of stored facts, in wordings not shown, that may be taken for unknown.", flag=None
    )
    margin: float = option(
        4.0,
        "Factor of confidence: in wordings of a kind that teaching did not use an answer is less sure.",
        flag=None,
    )
    raised: float = option(
        0.015, "As unsure, where questions about what was never taught would otherwise be answered.", flag=None
    )
    mistaken: float = option(0.006, "Share of the backbone's wrong answers that may be taken for knowledge.", flag=None)
    least: float = option(
        0.1, "Either threshold, at least: an answer that is less sure than that is not worth giving.", flag=None
    )
    questions: int = option(500, "Facts asked for the memory's threshold, at most.", flag=None)
    guesses: int = option(
        300, "Questions asked for the backbone's, at most: few of its wrong answers are confident.", flag=None
    )


@dataclass(frozen=True, slots=True)
class GateConfig:
    """When the memory may be read (docs/method.md)."""

    enabled: bool | None = option(
        None,
        "Train a gate. First; on (addressed) or off (dense) if not given.",
        flag="gate",
        shown="on",
    )
    subjects: bool = option(True, "Open only behind the names of stored subjects.", flag="gate_subjects")
    relations: bool = option(
        True,
        "Heed what is asked of a subject. It is compared with what was taught of the subject.",
        flag="gate_relations",
    )
    threshold: float = option(1.0, "Logit above which it opens.", flag="gate_threshold")
    steps: int | None = option(
        None,
        "Optimizer steps per gate. 500 if not given; 1,200 of the v0.2 reference recipe's.",
        flag="gate_steps",
        check=at_least(1),
        shown="500",
    )
    soft: bool = option(
        False,
        "The v0.2 reference recipe's gate: at every layer its sigmoid multiplies what the memory adds; no subjects, no "
        "threshold.",
        flag=None,
    )
    batch_size: int = option(1024, "Tokens per step of its training, half of each class.", flag=None)
    rate: float = option(6e-3, "Adam's learning rate at the start; it falls linearly to zero.", flag=None)
    hidden: int = option(256, "Width of its hidden layer.", flag=None)
    most_raised: float = option(
        1.5,
        "Logits that the threshold is raised by, at most: one odd token shall not shut the gate on the facts.",
        flag=None,
    )
    tokens: int = option(
        30_000,
        "Tokens that calibration and the gates are shown, at most; half of the facts, half of general text.",
        flag=None,
    )
    mentions: MentionConfig = field(default_factory=MentionConfig)
    relation_check: RelationConfig = field(default_factory=RelationConfig)
    abstention: AbstentionConfig = field(default_factory=AbstentionConfig)

    def __post_init__(self) -> None:
        check_section(self)


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which text is read beside the facts."""

    general_text: str | None = option(
        None,
        "General text: a file, or `sampled`. For calibration and the gate; `sampled` is text sampled from the "
        "backbone, and if nothing is given it is the shipped sample.",
        shown="shipped",
    )
    protect: str | None = option(
        None, "Keep at zero the slots this text reads. Most; `shipped`, `sampled` or a file.", advanced=True
    )
    protect_share: float = option(
        0.3,
        "Share of slots protected, at most. Never one that the text does not read.",
        advanced=True,
        check=share("the slots"),
    )
    anchors: str | None = option(
        None, "Questions mixed in, a file. Public facts: the v0.2 reference recipe's mixed corpus.", advanced=True
    )
    fluency: str | None = option(None, "Text mixed in, a file. As anchors.", advanced=True)
    keep_facts: bool = option(True, "Keep the facts with the memory. So they can be listed, updated and forgotten.")

    def __post_init__(self) -> None:
        check_section(self)


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How long, in which steps, and until when facts are taught."""

    exposures: int | None = option(
        None,
        "Times each fact is shown, at most. Each time in one wording; 5 if not given.",
        check=at_least(1),
        shown="5",
    )
    further: int | None = option(
        None,
        "Rounds of teaching further, at most. After the last exposure every fact is asked in every taught wording; "
        "where some are answered wrongly, these and those with a probability below one half are taught, up to 40 "
        "times a round. 6 if not given, and 0 with a number of exposures, without a gate, or with the recipe dense.",
        check=not_negative,
        shown="6",
    )
    batch_size: int = option(32, "Sequences per optimizer step.", check=at_least(1))
    accumulation: int = option(
        1, "Forward passes that a step is split into. At least one for each process.", check=at_least(1)
    )
    stop_at_recall: float = option(1.0, "Stop when measured recall reaches it.", check=positive)
    recall_sample: int = option(
        64,
        "Facts asked after each exposure. By one forward pass each; all are asked where the sample is full.",
        check=at_least(1),
    )
    loss: Literal["answer", "full"] = option("answer", "Which tokens count.", advanced=True)
    pack: int | None = option(
        None,
        "Tokens per packed sequence. Not packed if not given.",
        advanced=True,
        check=at_least(1),
        shown="off",
    )
    checkpoint_seconds: float = option(60.0, "Between checkpoints, at least.", advanced=True, check=not_negative)
    further_epochs: int = option(40, "Epochs of a further round, at most.", flag=None)
    further_rate: float = option(
        0.5,
        "Where the rate of a further round begins, as a share of the first's, at most. The share of the facts that are "
        "not held, where that is less, but at least a tenth.",
        flag=None,
    )
    respelled: float = option(
        0.4,
        "Share of the exposures after the first in another spelling of the wording, or with an alias.",
        flag=None,
        check=not_negative,
    )
    bad_steps: int = option(10, "Steps in a row whose loss is not finite, before teaching fails.", flag=None)

    def __post_init__(self) -> None:
        check_section(self)


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """How the value pool is written."""

    name: Literal["row-adamw", "adamw"] = option(
        "row-adamw",
        "Writes the values. row-adamw moves the rows that were read; adamw is torch's, over the whole pool.",
        flag="optimizer",
    )
    value_rate: float = option(
        0.12,
        "Learning rate of the values, in units of the MLP's RMS. Adam's; addressed recipe.",
        check=positive,
    )
    dense_rate: float = option(1e-3, "Learning rate of all else. Also of the dense recipe's values.", check=positive)
    warmup: int = option(10, "Steps until the full rate. It then falls linearly to a twentieth.", check=not_negative)
    clip: float | None = option(
        None, "Largest norm of the gradient. Not clipped if not given.", check=positive, shown="off"
    )
    semantics: Literal["dense", "lazy"] | None = option(
        None,
        "Of row-adamw: exact, or sparse. dense is torch's AdamW over the whole pool, to the last digit; lazy moves a "
        "row when it has a gradient; dense if not given, or lazy where the state is lossy.",
        flag="optimizer_semantics",
        advanced=True,
        shown="dense",
    )
    bits: Literal[32, 8] = option(32, "Bits of its moments. Row-adamw's.", flag="optimizer_bits", advanced=True)
    device: Literal["device", "host"] = option(
        "device",
        "Of its state. With the pool, or in host memory.",
        flag="optimizer_device",
        advanced=True,
    )
    rounding: Literal["master", "stochastic"] = option(
        "master",
        "How a bfloat16 pool is written. Through a float32 copy of touched rows, or by stochastic rounding.",
        flag="half_rounding",
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_section(self)
        lossy = self.bits == 8 or self.device == "host" or self.rounding == "stochastic"
        if self.semantics == "dense" and lossy:
            raise InputError(
                "optimizer_semantics dense means torch's AdamW to the last digit: take optimizer_bits 32, "
                "optimizer_device device and half_rounding master, or optimizer_semantics lazy"
            )


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """Where it runs."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "Number format of the backbone. auto is the checkpoint's own; on a CPU float32, unless bfloat16 is faster.",
    )
    device: str | None = option(None, "cpu, cuda, cuda:1 ...; chosen if not given.")
    shard_pool: Literal["none", "columns"] = option("none", "Split over a job's processes.")

    def __post_init__(self) -> None:
        check_section(self)
