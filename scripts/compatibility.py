"""Write docs/compatibility.md: what a memory does on each family of decoders that transformers has.

Every family is built in code, tiny and random; nothing is downloaded. A test compares the page with the installed
transformers, family by family (tests/test_compatibility.py).

Example: ``python scripts/compatibility.py``, or ``python scripts/compatibility.py --show bloom jamba``
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers.models.auto import modeling_auto

from memlayers.backbones import find_mlp_blocks
from memlayers.tuner import MemoryConfig, memory_handle
from memlayers.utils.errors import InputError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "compatibility.md"
YES, NOT_THE_MEMORY = "yes", "backbone: no"

SPECIAL = 10  # the token ids below are special ones: ends, padding, places of images and sound
SUBJECT = (61, 62)
OTHER_SUBJECTS = range(20, 60)  # one token each, so that what is generated mentions some: beams must carry it along
SCOPE = 30
NEW_TOKENS = 8
MENTIONING, SHORT, SILENT = (
    [11, *SUBJECT, 13, 17, 23, 29, 31, 19],
    [12, *SUBJECT, 15, 21],
    [11, 14, 13, 17, 23, 29, 31, 19, 22],
)

TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
MOE: dict[str, Any] = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_k": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip
LATENT: dict[str, Any] = {
    **MOE, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
MAMBA: dict[str, Any] = {
    "mamba_num_heads": 4, "n_mamba_heads": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_head_dim": 16,
    "mamba_headdim": 16, "mamba_d_ssm": 64, "mamba_n_groups": 1, "n_groups": 1, "mamba_ngroups": 1, "mamba_d_state": 8,
    "ssm_state_size": 8, "mamba_chunk_size": 16, "chunk_size": 16, "use_mamba_kernels": False,
}  # fmt: skip
DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
# A tower deeper than the text decoder, and as wide.
TOWER: dict[str, Any] = {
    "hidden_size": 32, "embed_dim": 32, "intermediate_size": 48, "num_hidden_layers": 5, "depth": 5,
    "num_attention_heads": 4, "num_heads": 4, "image_size": 8, "patch_size": 4, "projection_dim": 32,
    "out_hidden_size": 32, "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip
EAR: dict[str, Any] = {
    "hidden_size": 32, "d_model": 32, "intermediate_size": 48, "encoder_ffn_dim": 48, "num_hidden_layers": 5,
    "encoder_layers": 5, "num_attention_heads": 4, "encoder_attention_heads": 4, "num_mel_bins": 8,
    "max_source_positions": 16,
}  # fmt: skip
SEES: dict[str, Any] = {
    "audio_token_id": 3, "audio_token_index": 3,
    "image_token_id": 3, "image_token_index": 3, "video_token_id": 4, "video_token_index": 4,
    "vision_start_token_id": 5, "vision_end_token_id": 6, "boi_token_index": 5, "eoi_token_index": 6, "pad_token_id": 0,
}  # fmt: skip
MROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}


def _seeing(decoder: str, tower: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    """The config of a multimodal model, given the type of its text decoder and what else the two parts need."""
    text = {"model_type": decoder, **TEXT, **(MROPE if "_vl" in decoder else {})}
    return {"text_config": text, "vision_config": TOWER | (tower or {}), **SEES, **config}


def _hearing(decoder: str, tower: dict[str, Any] | None = None) -> dict[str, Any]:
    """The same for one that listens."""
    return {"text_config": {"model_type": decoder, **TEXT}, "audio_config": EAR | (tower or {}), **SEES}


GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "Dense decoders": {
        **dict.fromkeys(
            "apertus arcee bitnet cohere2 diffllama ernie4_5 exaone4 gemma gemma2 gemma3_text glm glm4 gpt2 "
            "gpt_bigcode granite helium hunyuan_v1_dense llama mistral nemotron olmo olmo2 olmo3 persimmon phi3 "
            "qwen2 qwen3 seed_oss smollm3 stablelm starcoder2".split(),
            {},
        ),
        "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": 8},
    },
    "Attention and MLP side by side": {
        "codegen": {"rotary_dim": 4, "n_ctx": 64},
        "cohere": {},
        "falcon": {"head_dim": None},
        "gpt_neox": {},
        "gptj": {"rotary_dim": 4},
        "phi": {},
    },
    "The MLP adds the residual": {"bloom": {}, "mpt": {"max_seq_len": 64}},
    "Mixtures of experts": {
        **dict.fromkeys(
            "ernie4_5_moe flex_olmo glm4_moe gpt_oss granitemoe hunyuan_v1_moe jetmoe llama4_text mixtral olmoe "
            "phimoe qwen2_moe qwen3_moe".split(),
            MOE,
        ),
        **dict.fromkeys("deepseek_v2 deepseek_v3".split(), LATENT),
        "longcat_flash": {
            **LATENT, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "moe_topk": 2, "zero_expert_num": 1,
        },
    },
    "Hybrids and linear attention": {
        "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
        "falcon_h1": MAMBA,
        "granitemoehybrid": {**MAMBA, **MOE, "layer_types": ["linear_attention", "full_attention"] * 2},
        "kimi_linear": {**LATENT, **DELTA, "linear_num_heads": 4, "linear_head_dim": 8},
        "jamba": {**MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "num_experts": 4},
        "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
        "minimax": {**MOE, "layer_types": ["linear_attention", "full_attention"] * 2},
        "nemotron_h": {**MAMBA, "layers_block_type": ["mamba", "mlp", "attention", "mlp"]},
        "olmo_hybrid": DELTA,
        "qwen3_5_text": DELTA,
        "qwen3_next": {**MOE, **DELTA},
        "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8},
        "xlstm": {"hidden_size": 128, "num_heads": 4},
        "zamba2": {**MAMBA, "layers_block_type": ["mamba", "hybrid"] * 2, "adapter_rank": 4},
    },
    "Text decoders of multimodal models": {
        "gemma3n_text": {
            "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
            "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "gemma3": _seeing("gemma3_text", mm_tokens_per_image=4),
        "idefics3": _seeing("llama"),
        "internvl": _seeing("qwen2"),
        "llama4": _seeing(
            "llama4_text", {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
        ),
        "llava": _seeing("llama", {"model_type": "clip_vision_model"}),
        "mistral3": _seeing("mistral", {"model_type": "pixtral"}),
        "paligemma": _seeing("gemma"),
        "qwen2_audio": _hearing("qwen2", {"model_type": "qwen2_audio_encoder"}),
        "qwen2_5_vl": _seeing("qwen2_5_vl_text"),
        "qwen2_vl": _seeing("qwen2_vl_text"),
        "qwen3_vl": _seeing("qwen3_vl_text", {"deepstack_visual_indexes": [1, 2]}),
        "smolvlm": _seeing("llama"),
        "voxtral": _hearing("llama"),
    },
}  # fmt: skip
"""The families by group, each with what its config needs besides `TEXT`."""

FAMILIES = {family: config for group in GROUPS.values() for family, config in group.items()}


def build(family: str) -> Any:
    """The tiny backbone of a family, frozen, float32, in eval mode; the same weights at every call."""
    config = FAMILIES[family]
    sees = "text_config" in config
    kind: Any = AutoModelForMultimodalLM if sees else AutoModelForCausalLM
    sizes = {name: value for name, value in ({} if sees else TEXT | config).items() if value is not None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind.from_config(AutoConfig.for_model(family, **(config if sees else sizes)))
    return model.requires_grad_(False).eval()  # as load_backbone does; some sums are taken in another order otherwise


def row(family: str, columns: Iterable[str] = ()) -> dict[str, str]:
    """What holds for a family: for each column, or some of them, "yes", or why not in a few words."""
    checks = {column: COLUMNS[column] for column in columns or COLUMNS}
    with _quiet():
        try:
            trial = Trial(family)
        except Exception as error:
            return dict.fromkeys(checks, _said(error))
        return {column: trial.cell(check) for column, check in checks.items()}


class Trial:
    """A family's backbone, bare and with a memory that changes what it says after a mention.

    Args:
        family: of `FAMILIES`.

    Raises:
        InputError: the family is refused.
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self.bare = build(family)
        config = MemoryConfig(sub_keys=8, heads=2, top_k=3, subjects=True)
        self.model: Any = get_peft_model(build(family), config).eval()
        self._said: dict[Any, Said] = {}
        memory = memory_handle(self.model)
        assert memory.index is not None
        memory.index.fill({form: form for form in (SUBJECT, *((token,) for token in OTHER_SUBJECTS))}, SCOPE)
        self.pool = memory.pool.weight
        self.fresh = torch.equal(logits(self.model), logits(self.bare))
        said = self.said_by(self.bare)
        for attempt in range(8):  # until it speaks up: another draw, four times as loud
            self._said.clear()
            memory.pool.initialise("normal", attempt)
            self.pool.data *= 4**attempt
            if not torch.equal(said.tokens, self.said_by(self.model).tokens):
                break
        else:
            raise RuntimeError("the memory changes no token")

    def said_by(self, model: Any, *texts: list[int], **options: Any) -> Said:
        """What a model generates (`said_by`), worked out once."""
        key = model is self.bare, str(texts), tuple(options.items())
        if key not in self._said:
            self._said[key] = said_by(model, *texts, **options)
        return self._said[key]

    def cell(self, check: Check) -> str:
        """What a check finds: "yes", or why not; checked on the bare backbone, too, where it fails with the memory."""
        found = _found(check, self, self.model)
        return NOT_THE_MEMORY if found != YES and _found(check, self, self.bare) != YES else found


Check = Callable[[Trial, Any], bool]


def logits(model: Any) -> Tensor:
    """Of two texts, the first of which mentions a subject."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([MENTIONING, SILENT])).logits  # type: ignore[no-any-return]


class Said(NamedTuple):
    """What a model generates.

    Attributes:
        tokens: int64 [texts, new tokens].
        scores: their logits [texts, new tokens, v], or of beams the score of the best [texts].
    """

    tokens: Tensor
    scores: Tensor

    def about(self, text: int) -> Said:
        """What follows one of the texts."""
        return Said(self.tokens[text], self.scores[text])

    def is_as(self, other: Said) -> bool:
        """The same tokens, for the same reasons: with equal scores up to rounding."""
        return torch.equal(self.tokens, other.tokens) and _close(self.scores, other.scores)


def said_by(model: Any, *texts: list[int], **options: Any) -> Said:
    """What follows the texts, by default `MENTIONING` and `SILENT`; shorter ones are padded on the left."""
    texts = texts or (MENTIONING, SILENT)
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
    out = model.generate(
        input_ids=ids, attention_mask=(ids != 0).long(), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0,
        suppress_tokens=list(range(SPECIAL)), return_dict_in_generate=True, output_logits=True, output_scores=True,
        **{"use_cache": False, **options},
    )  # fmt: skip
    scores = out.sequences_scores if "num_beams" in options else torch.stack(out.logits, 1)
    return Said(out.sequences[:, longest:], scores)


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-3 * one.abs().max())


def attaches(trial: Trial, model: Any) -> bool:
    """A memory that nothing was taught leaves every bit of the logits."""
    return model is trial.bare or trial.fresh


def gradient_reaches_the_pool_alone(trial: Trial, model: Any) -> bool:
    """After a backward pass the pool has a gradient, and no weight of the backbone."""
    if model is trial.bare:
        return True
    out = model(input_ids=torch.tensor([MENTIONING])).logits[0, :-1]
    F.cross_entropy(out, torch.tensor(MENTIONING[1:])).backward()
    others = [weight for weight in model.parameters() if weight is not trial.pool]
    reached = trial.pool.grad is not None and bool(trial.pool.grad.any())
    return reached and all(weight.grad is None for weight in others)


def is_saved(trial: Trial, model: Any) -> bool:
    """Saved, and loaded on another copy of the backbone, it gives the same bits."""
    if model is trial.bare:
        return True
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(build(trial.family), folder).eval()
    return torch.equal(logits(loaded), logits(model))


def caches(trial: Trial, model: Any) -> bool:
    """Greedy generation with a cache gives the tokens, and the scores, that it gives without."""
    return trial.said_by(model, use_cache=True).is_as(trial.said_by(model))


def pads(trial: Trial, model: Any) -> bool:
    """A text padded on the left, beside a longer one, goes on as it does alone."""
    beside = trial.said_by(model, MENTIONING, SHORT, use_cache=True)
    alone = trial.said_by(model, SHORT, use_cache=True)
    return beside.about(1).is_as(alone.about(0))


def caches_statically(trial: Trial, model: Any) -> bool:
    """Greedy generation with a static cache gives what it gives with one that grows."""
    static = trial.said_by(model, use_cache=True, cache_implementation="static")
    return static.is_as(trial.said_by(model, use_cache=True))


def beams(trial: Trial, model: Any) -> bool:
    """Three beams with a cache find what they find without."""
    return trial.said_by(model, use_cache=True, num_beams=3).is_as(trial.said_by(model, num_beams=3))


def compiles(trial: Trial, model: Any) -> bool:
    """Compiled as one graph (`torch.compile(model, fullgraph=True)`) it gives the same logits, up to rounding."""
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    return _close(logits(compiled), logits(model))


COLUMNS: dict[str, Check] = {
    "attached": attaches,
    "gradient": gradient_reaches_the_pool_alone,
    "saved": is_saved,
    "cache": caches,
    "left padding": pads,
    "static cache": caches_statically,
    "beams": beams,
    "compiled": compiles,
}


def _found(check: Check, trial: Trial, model: Any) -> str:
    try:
        return YES if check(trial, model) else "differs"
    except Exception as error:
        return _said(error)


def _said(error: Exception) -> str:
    """An error in a few words, fit for a cell."""
    if type(error).__module__.startswith("torch._dynamo"):
        return "graph break"
    words = str(error).strip().splitlines()[0] if isinstance(error, InputError) else type(error).__name__
    return words.split(":")[0].replace("|", "/")


@contextmanager
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)


def line(family: str, cells: dict[str, str]) -> str:
    """A family's row as the page has it."""
    return f"| `{family}` | {' | '.join(cells.values())} |"


def model_classes() -> dict[str, str]:
    """The classes that transformers' automatic ones load as a causal LM or a multimodal one: name and model type."""
    mappings = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )  # fmt: skip
    pairs = [pair for mapping in mappings for pair in mapping.items()]
    return {name: kind for kind, names in reversed(pairs) for name in ([names] if isinstance(names, str) else names)}


def verdict(name: str, kind: str | None = None) -> str:
    """Whether a class gets a memory: "yes", or the line that refuses it, without its name.

    Args:
        name: of a model class.
        kind: its model type; None where the class's own default config will do.

    Raises:
        Exception: the class's own, where no model can be built, or without weights at that.
    """
    model_class: Any = getattr(transformers, name)
    configs: list[Callable[[], Any]] = [model_class.config_class]
    if kind is not None:
        own = FAMILIES.get(kind, {})
        configs += [partial(AutoConfig.for_model, kind, **sizes) for sizes in (TEXT, TEXT | MOE | DELTA, own)]
    with _quiet(), torch.device("meta"):
        model = _first_built(model_class, configs)
    try:
        find_mlp_blocks(model)
    except InputError as error:
        return str(error).split(";")[0].removeprefix(name).removeprefix("'s ").strip()
    return YES


def _first_built(model_class: Any, configs: list[Callable[[], Any]]) -> Any:
    for config in configs[:-1]:
        with suppress(Exception):
            return model_class(config())
    return model_class(configs[-1]())


def survey() -> str:
    """What becomes of every class that transformers has: how many get a memory, and why the others do not."""
    found, refused, unbuilt = 0, dict[str, list[str]](), []
    for name, kind in sorted(model_classes().items()):
        try:
            why = verdict(name, kind)
        except Exception:
            unbuilt.append(f"`{name}`")
            continue
        if why == YES:
            found += 1
        else:
            refused.setdefault(why, []).append(f"`{name}`")
    count = sum(map(len, refused.values()))
    told = f"""\
Of the {found + count + len(unbuilt)} classes that transformers' automatic classes for causal and multimodal LMs name,
{found} get a memory and {count} are refused, each in one line that says what is missing. {len(unbuilt)} were not tried:
no model can be built of their default config.
"""
    rows = sorted(refused.items(), key=lambda item: -len(item[1]))
    table = [f"| {why} | {', '.join(names)} |" for why, names in rows] + [f"| not tried | {', '.join(unbuilt)} |"]
    return "\n".join([told, "| refused because | |", "|---|---|", *table]) + "\n"


def versions() -> str:
    """What the page was made with."""
    return f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"


def page() -> str:
    """The whole page; a few minutes."""
    head = f"""\
# Compatibility

What a memory does on each family of decoders, as tiny random models of every family show. Made by
`python scripts/compatibility.py` with {versions()}; a test compares each row.

The memory knows its subjects ([method](method.md#2-linking-and-gating)), so its gate follows the tokens, and it
changes what the backbone says. "yes" holds to the bit or the token; where the bare backbone itself fails, it says
"{NOT_THE_MEMORY}". The columns:

"""
    parts = [head, *(f"- **{column}**: {str(check.__doc__).strip()}\n" for column, check in COLUMNS.items())]
    for group, families in GROUPS.items():
        parts.append(f"\n## {group}\n\n| family | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}\n")
        parts += [line(family, row(family)) + "\n" for family in families]
    return "".join(parts) + f"\n## Which backbones get a memory\n\n{survey()}"


def main() -> None:
    """Write the page, or show some families' rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", nargs="+", choices=FAMILIES, metavar="FAMILY", help="print their rows, write nothing")
    families = parser.parse_args().show
    if not families:
        PAGE.write_text(page(), encoding="utf-8")
    for family in families or ():
        print(line(family, row(family)))


if __name__ == "__main__":
    main()
