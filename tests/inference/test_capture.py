from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from memlayers.backbones import load_backbone
from memlayers.data.encoding import encode_prompt
from memlayers.inference.capture import (
    capture,
    collect_features,
    count_reads,
    prompt_states,
    slots_read,
    watched_reads,
)
from memlayers.tuner import MemoryConfig, memory_handle, memory_layers
from memlayers.tuner.handle import gates_off

Build = Callable[..., PreTrainedModel]


def _model(backbone: PreTrainedModel, **options: Any) -> Any:
    config = {"layers": [1, 2], "sub_keys": 8, "heads": 2, "top_k": 3, "key_dim": 8, **options}
    return get_peft_model(backbone, MemoryConfig(**config)).eval()


def _sequences(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, 64, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def _direct(backbone: PreTrainedModel, layer: int, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Input and output of a bare backbone's MLP block on one sequence without padding, [tokens, d] each."""
    seen: list[tuple[Tensor, Tensor]] = []
    block: Any = backbone.get_submodule(f"model.layers.{layer}.mlp")
    hook = block.register_forward_hook(lambda module, arguments, output: seen.append((arguments[0][0], output[0])))
    backbone(torch.tensor([ids]))
    hook.remove()
    return seen[0]


def test_features_are_the_bare_backbones_without_padding(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(initializer_range=0.2))
    memory_handle(model, "default").pool.initialise("normal", 0)  # a memory in force would change what layer 2 sees
    sequences = _sequences(13, 20)
    progress: list[int] = []
    features = collect_features(memory_handle(model, "default"), sequences, batch_tokens=64, progress=progress.append)
    assert len(progress) > 2 and sum(progress) == 13
    assert len(features) == 2
    bare = tiny_backbone(initializer_range=0.2)
    for layer, seen in zip((1, 2), features, strict=True):
        assert seen.inputs.shape == (sum(map(len, sequences)), 32)
        outputs = []
        for number, ids in enumerate(sequences):
            given, output = _direct(bare, layer, ids)
            torch.testing.assert_close(seen.inputs[seen.sequence == number], given, rtol=1e-4, atol=1e-5)
            outputs.append(output)
        rms = torch.cat(outputs).square().mean().sqrt().item()
        assert seen.output_rms == pytest.approx(rms, rel=1e-4)


def test_collecting_leaves_the_model_as_it_was(tiny_backbone: Build, ids: Tensor) -> None:
    model = _model(tiny_backbone())
    memory_handle(model, "default").pool.initialise("normal", 0)
    before = model(ids).logits
    collect_features(memory_handle(model, "default"), _sequences(3, 5))

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_features(memory_handle(model, "default"), _sequences(3, 5), progress=fail)
    assert torch.equal(model(ids).logits, before)
    assert not any(layer._forward_hooks for layer in memory_layers(model))


def test_reads_are_counted_over_all_layers_without_padding(tiny_backbone: Any) -> None:
    model = get_peft_model(tiny_backbone(), MemoryConfig(sub_keys=8, heads=2, top_k=3, gate=True))
    sequences = [[5, 6, 7, 8], [9, 10], [11]]
    reads = count_reads(memory_handle(model, "default"), sequences)
    assert reads.sum() == 7 * len(memory_layers(model, "default")) * 2 * 3
    alone = sum(count_reads(memory_handle(model, "default"), [ids]) for ids in sequences)
    assert torch.equal(reads, alone)
    with torch.no_grad(), gates_off(model), watched_reads(memory_handle(model, "default")) as seen:
        model(torch.tensor([sequences[0]]))
    assert [read.layer for read in seen] == [0, 1, 2] and all(read.tokens is None for read in seen)
    first = seen[0].indices.flatten().bincount(minlength=64)
    assert (reads >= first).all() and all(layer.gate_enabled for layer in memory_layers(model))


def test_states_are_the_first_layers_input_and_the_last_hidden_state_at_the_last_token(chat_backbone: Path) -> None:
    backbone, tokenizer = load_backbone(chat_backbone, "float32")
    prompts = [
        encode_prompt(tokenizer, question) for question in ("Who?", "What is the town of Aalko?", "Why?", "Who?")
    ]
    with torch.no_grad():
        last = torch.stack([backbone.base_model(torch.tensor([each])).last_hidden_state[0, -1] for each in prompts])
    model = _model(backbone)
    memory = memory_handle(model, "default")
    inputs: list[Tensor] = []
    hook = memory_layers(model)[0].register_forward_hook(lambda _, args, out: inputs.append(args[0][0, -1]))
    with torch.no_grad():
        for prompt in prompts:
            model(torch.tensor([prompt]))
    hook.remove()
    done: list[int] = []
    for batch_tokens in (4096, 1):
        shallow, deep = prompt_states(memory, prompts, batch_tokens=batch_tokens, progress=done.append)
        assert torch.allclose(shallow, torch.stack(inputs), atol=1e-5) and torch.allclose(deep, last, atol=1e-5)
    assert sum(done) == 2 * len(prompts)
    (alone,) = prompt_states(memory, prompts, deep=False)
    assert torch.allclose(alone, torch.stack(inputs), atol=1e-5)


def _hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _half_open(model: Any, ids: Tensor) -> None:
    """Gives each layer's gate a threshold that it opens above for about half of the tokens."""
    with capture(memory_handle(model, "default"), "inputs") as seen, torch.no_grad():
        model(ids)
    for number, gate in enumerate(memory_handle(model, "default").gates):
        gate.threshold.copy_(gate(seen.inputs[number]).median())
        gate.trained.fill_(1)


def test_a_batch_holds_the_real_tokens_of_its_sequences(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(initializer_range=0.2))
    memory = memory_handle(model, "default")
    memory.pool.initialise("normal", 0)
    sequences = _sequences(7, 9)
    hooks = _hooks(model)
    chosen: list[int] = []
    found: list[tuple[Any, ...]] = []
    with torch.no_grad(), capture(memory, "inputs", "block", "outputs", "reads") as seen:
        for batch in seen.run(sequences, 24):
            chosen += batch.chosen
            lengths = [len(sequences[i]) for i in batch.chosen]
            assert batch.lengths.tolist() == lengths and len(batch.sequence) == sum(lengths)
            assert batch.sequence[batch.starts].tolist() == batch.chosen
            assert [read.layer for read in seen.reads] == [0, 1]
            kinds = (seen.inputs, seen.block, seen.outputs)
            found += [(read, *(kept[read.layer] for kept in kinds)) for read in seen.reads]
            assert all(len(each) == sum(lengths) for each in found[-1][1:])
    with torch.no_grad():
        for read, x, block, outputs in found:
            layer = memory.layers[read.layer]
            own = layer.read(x, "default")
            assert torch.equal(read.indices, own.indices) and read.tokens is None
            torch.testing.assert_close(read.queries, layer.memlayers_query["default"](x))
            torch.testing.assert_close(outputs, layer(x), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(block, layer.base_layer(x), rtol=1e-4, atol=1e-5)
            assert not torch.equal(outputs, block)
    assert sorted(chosen) == list(range(7)) and _hooks(model) == hooks


def test_a_run_ends_behind_the_last_layer_recorded_and_other_passes_do_not(tiny_backbone: Build, ids: Tensor) -> None:
    model = _model(tiny_backbone())
    calls: list[int] = []
    for number, layer in enumerate(model.get_base_model().model.layers):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    for layers, complete in ((1, [0]), (None, [0, 1])):
        with torch.no_grad(), capture(memory_handle(model, "default"), "inputs", layers=layers) as seen:
            list(seen.run(ids.tolist()))
            assert calls == complete and sorted(seen.inputs) == list(range(len(complete)))
            calls.clear()
            model(ids)
            assert calls == [0, 1, 2, 3]
            calls.clear()


def test_a_failure_leaves_no_hook_and_no_half_captured_batch(tiny_backbone: Build, ids: Tensor) -> None:
    model = _model(tiny_backbone())
    hooks = _hooks(model)
    with pytest.raises(KeyboardInterrupt), capture(memory_handle(model, "default"), "reads") as seen:
        for _ in seen.run(ids.tolist()):
            raise KeyboardInterrupt
    assert _hooks(model) == hooks


def test_slots_read_are_those_of_each_owners_tokens_through_each_layers_own_gate(tiny_backbone: Build) -> None:
    model = _model(tiny_backbone(initializer_range=0.2), gate=True)
    sequences = _sequences(9, 12)
    _half_open(model, torch.tensor([sum(sequences, [])]))
    expected: list[Counter[int]] = [Counter() for _ in range(3)]
    reads = 0
    with torch.no_grad(), watched_reads(memory_handle(model, "default")) as seen:
        for number, ids in enumerate(sequences):
            model(torch.tensor([ids]))
            for read in seen:
                expected[number // 3].update(read.indices.flatten().tolist())
                reads += len(read.indices)
            seen.clear()
    assert 0 < reads < 2 * sum(map(len, sequences))
    for batch_tokens in (4096, 20, 1):
        found = slots_read(
            memory_handle(model, "default"), sequences, [i // 3 for i in range(9)], batch_tokens=batch_tokens
        )
        assert [dict(zip(a.tolist(), b.tolist(), strict=True)) for a, b in found] == [dict(each) for each in expected]
        assert all(slots.tolist() == sorted(slots.tolist()) for slots, _ in found)
    assert slots_read(memory_handle(model, "default"), [], []) == []


def test_what_a_block_gives_is_recorded_without_the_residual_that_it_adds() -> None:
    """BLOOM's MLP adds the residual stream itself; the unit of the values is what the MLP makes of its input."""
    config = BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64, hidden_dropout=0.0)
    model: Any = get_peft_model(BloomForCausalLM(config), MemoryConfig(layers=[1], sub_keys=8, heads=2, top_k=3)).eval()
    memory = memory_handle(model)
    memory.pool.initialise("normal", 0)
    block: Any = memory.layers[0].base_layer
    made: list[Any] = []
    block.dense_4h_to_h.register_forward_hook(lambda _, __, out: made.append(out))
    with torch.no_grad(), capture(memory, "block", "outputs", "reads") as seen:
        model(torch.tensor([[3, 4, 5]]))
    torch.testing.assert_close(seen.block[0], made[0][0])
    (read,) = seen.reads
    added = memory.pool(read.indices, read.weights).detach()
    torch.testing.assert_close(seen.outputs[0] - seen.block[0], added, rtol=1e-4, atol=1e-5)
