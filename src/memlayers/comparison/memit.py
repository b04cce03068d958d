"""MEMIT (Meng et al. 2022, arXiv 2210.07229, section 4): facts written into down-projections in closed form.

An MLP's down-projection W maps a key k, its input at the last token of a subject, to what is added to the residual
stream. For each fact i a change d_i of the residual stream behind the last edited layer L, at that token, is found by
gradient, so that the backbone answers rightly. Layer after layer, each l of the edited ones takes its share of what is
still missing::

    r_i = (h_i + d_i - h_i now) / (L - l + 1)                          h_i: the residual stream behind L, at that token
    W  += R K^T (lambda C + K K^T)^-1                                 R, K: the r_i and k_i as columns; C = E[k k^T]

C, of general text, stands for what W must keep. Here the taught wordings take the place of the paper's random
prefixes: some of each fact's, whose keys, and residual streams, are averaged. lambda is chosen as the learning rates of
`comparison/tuning.py` are, on wordings held out of a tenth of the facts, as 15,000 suits GPT-J but not every backbone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlayers.backbones import context_length, find_mlp_blocks, hidden_size
from memlayers.comparison.method import Method
from memlayers.comparison.tuning import HELD_OUT
from memlayers.data.encoding import Encoded, encode_example, encode_prompt, padded_batches, tokens_in
from memlayers.data.facts import Fact
from memlayers.data.general_text import load_general_text
from memlayers.inference.scoring import answer_confidences, answer_logits
from memlayers.inference.shared_prefix import SharedPrefix, shared_prefix
from memlayers.linking.token_spans import mention_span
from memlayers.utils.errors import InputError
from memlayers.utils.progress import progress_bar

FIRST, LAST, DEPTH = 3, 8, 28  # GPT-J's edited layers and its depth (section 5.2), scaled to the backbone's
WORDINGS = 2  # of a fact that are edited
STEPS, RATE, LIKELY_ENOUGH = 25, 0.3, 0.05  # of the search for a change, by Adam; nats a token, where it ends
DECAY, LARGEST = 0.002, 4.0  # a weight on the change's square; its largest norm, as a share of the state's
LAMBDAS = (15_000.0, 1_500.0, 150.0)
COVARIANCE_TOKENS, TEXT_TOKENS = 30_000, 256
BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fact is written: one wording with its answer, and the last token of the subject in it."""

    example: Encoded
    token: int


class Memit(Method):
    """A backbone whose down-projections are edited."""

    def teach(self, facts: Sequence[Fact]) -> None:
        """Finds the changes, chooses lambda, and edits.

        Raises:
            InputError: the MLPs have no linear down-projection.
        """
        self.load()
        self.widen()
        depth = len(find_mlp_blocks(self.model))
        last = min(round(LAST / DEPTH * depth), max(depth - 2, 0))  # behind the last of all nothing is read any more
        self.layers = list(range(min(round(FIRST / DEPTH * depth), last), last + 1))
        self.downs, self.behind = edited_modules(self.model, self.layers)
        self.covariances = self._covariances()
        places = [self._places(fact) for fact in facts]
        targets = self._targets(places)
        self.strength = self._chosen_lambda(facts, places, targets)
        self._edit(places, targets, self.strength)
        self.narrow()
        self.note = f"layers {self.layers[0]} to {self.layers[-1]}, lambda {self.strength:g}"

    def update(self, fact: Fact) -> None:
        """One more edit."""
        self.widen()
        places = [self._places(fact)]
        self._edit(places, self._targets(places), self.strength)
        self.narrow()

    def stored_bytes(self) -> int:
        """The edited matrices."""
        return sum(down.weight.numel() * down.weight.element_size() for down in self.downs)

    # -- what a fact is to become -------------------------------------------------------------------------------------

    def _places(self, fact: Fact) -> list[Place]:
        """Some of a fact's wordings; the last token of the prompt where one does not name the subject."""
        places = []
        for question in fact.questions[:WORDINGS]:
            example = encode_example(self.tokenizer, question, fact.answer, "answer", context_length(self.model))
            prompt = encode_prompt(self.tokenizer, question)
            span = mention_span(self.tokenizer, prompt, fact.subject, question) if fact.subject else None
            places.append(Place(example, len(prompt) - 1 if span is None else span[1] - 1))
        return places

    def _targets(self, places: Sequence[Sequence[Place]]) -> Tensor:
        """Per fact what its residual stream is to be: h_i + d_i, [facts, width]."""
        flat = [place for each in places for place in each]
        prefix = shared_prefix(self.model, [place.example.input_ids for place in flat])
        if prefix is not None and any(place.token < len(prefix.ids) for place in flat):
            prefix = None  # it holds a subject
        before = self._averaged(places, self.behind)
        changes = []
        with progress_bar("MEMIT: targets", len(places), quiet=self.quiet) as advance:
            for each, state in zip(places, before, strict=True):
                changes.append(self._change(each, state, prefix))
                advance(1)
        return before + torch.stack(changes)

    def _change(self, places: Sequence[Place], state: Tensor, prefix: SharedPrefix | None) -> Tensor:
        """What, added to the residual stream behind the last edited layer, makes the backbone answer, [width].

        Args:
            places: the fact's.
            state: the residual stream there, [width]; its root mean square is the unit of the search.
            prefix: what all prompts begin with.
        """
        examples, rows = [place.example for place in places], torch.arange(len(places))
        skipped = len(prefix.ids) if prefix is not None else 0
        tokens = torch.tensor([place.token - skipped for place in places])
        unit = state.square().mean().sqrt()
        change = torch.zeros_like(state, requires_grad=True)
        optimizer = torch.optim.Adam([change], lr=RATE)

        def add(module: nn.Module, inputs: Any, output: Any) -> Any:
            changed = _first(output).clone()
            changed[rows, tokens] += change * unit
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        for _ in range(STEPS):
            with _hooked(self.behind, add):
                out = answer_logits(self.model, self.tokenizer, examples, prefix)
            self.tokens += tokens_in([example.input_ids for example in examples]) - skipped * len(examples)
            loss = F.cross_entropy(out.logits, out.labels)
            if float(loss.detach()) < LIKELY_ENOUGH:
                break
            optimizer.zero_grad()
            (loss + DECAY * change.square().mean()).backward()
            optimizer.step()
            with torch.no_grad():
                change *= min(1.0, LARGEST / float(change.square().mean().sqrt().clamp(min=1e-9)))
        return (change * unit).detach()

    # -- the edit -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _edit(self, places: Sequence[Sequence[Place]], targets: Tensor, strength: float) -> None:
        """Spreads what is missing over the layers, the first one first."""
        for number, (down, covariance) in enumerate(zip(self.downs, self.covariances, strict=True)):
            keys = self._averaged(places, down, inputs=True).double().T  # [inner, facts]
            missing = (targets - self._averaged(places, self.behind)).double().T / (len(self.downs) - number)
            kept = strength * covariance + keys @ keys.T
            change = missing @ torch.linalg.solve(kept, keys).T  # kept is symmetric
            down.weight += change.to(down.weight.dtype)

    def _chosen_lambda(
        self, facts: Sequence[Fact], places: Sequence[Sequence[Place]], targets: Tensor
    ) -> float:  # fmt: skip
        """The lambda whose edit answers most wordings that are not edited, of a tenth of the facts."""
        chosen = random.Random(f"{self.config.seed}:held out").sample(facts, max(1, round(HELD_OUT * len(facts))))
        held = [encode_example(self.tokenizer, fact.questions[-1], fact.answer) for fact in chosen]
        kept = [down.weight.detach().clone() for down in self.downs]
        scores = {}
        for strength in LAMBDAS:
            self._edit(places, targets, strength)
            found = answer_confidences(self.model, self.tokenizer, held)
            scores[strength] = (sum(right for right, _ in found), sum(chance for _, chance in found))
            for down, weight in zip(self.downs, kept, strict=True):
                down.weight.data.copy_(weight)
        return max(LAMBDAS, key=lambda strength: scores[strength])

    # -- what the backbone makes of texts -----------------------------------------------------------------------------

    def _averaged(self, places: Sequence[Sequence[Place]], module: nn.Module, *, inputs: bool = False) -> Tensor:
        """Per fact the mean, over its wordings, of what a module takes in or gives at the subject: [facts, ...]."""
        seen = self._seen([place for each in places for place in each], module, inputs=inputs)
        return torch.stack([part.mean(0) for part in seen.split([len(each) for each in places])])

    def _seen(self, places: Sequence[Place], module: nn.Module, *, inputs: bool = False) -> Tensor:
        """What a module takes in, or gives, at the last token of the subject: [places, width]."""
        texts = [place.example.input_ids[: place.token + 1] for place in places]  # what comes after is not seen
        found: dict[int, Tensor] = {}
        for chosen, (state,), _ in self._forwards(texts, [module], inputs=inputs):
            found |= {i: state[row, places[i].token] for row, i in enumerate(chosen)}
        return torch.stack([found[i] for i in range(len(texts))])

    def _covariances(self) -> list[Tensor]:
        """Of each edited layer, E[k k^T] over general text, float64 [inner, inner]."""
        source, longest = self.config.data.general_text, min(context_length(self.model), TEXT_TOKENS)
        text = load_general_text(source, self.model, self.tokenizer, self.config.seed)
        sample, _ = text.sample(self.tokenizer, longest, COVARIANCE_TOKENS, self.config.seed)
        sums = [torch.zeros(each.in_features, each.in_features).to(each.weight.device).double() for each in self.downs]
        with progress_bar("MEMIT: general text", len(sample), quiet=self.quiet) as advance:
            for chosen, states, real in self._forwards(sample, self.downs, inputs=True):
                for each, state in zip(sums, states, strict=True):
                    keys = state[real].float()
                    each += keys.T @ keys
                advance(len(chosen))
        return [each / tokens_in(sample) for each in sums]

    @torch.no_grad()
    def _forwards(
        self, texts: Sequence[Sequence[int]], modules: Sequence[nn.Module], *, inputs: bool
    ) -> Iterator[tuple[list[int], list[Tensor], Tensor]]:
        """Batches of texts, read as far as the last of some modules, which are in the backbone's order.

        Yields:
            Which texts; what each module takes in, or gives, [b, t, width]; which tokens are real, bool [b, t].
        """
        seen: list[Tensor] = []

        def look(module: nn.Module, given: Any, output: Any) -> None:
            seen.append(_first(given if inputs else output))
            if module is modules[-1]:
                raise _SeenError

        device = next(self.model.parameters()).device
        for chosen, ids, real in padded_batches(texts, BATCH_TOKENS):
            self.tokens += int(real.sum())
            with ExitStack() as stack:
                stack.enter_context(suppress(_SeenError))
                for module in modules:
                    stack.enter_context(_hooked(module, look))
                self.model(input_ids=ids.to(device), attention_mask=real.long().to(device), use_cache=False)
            yield chosen, list(seen), real.to(device)
            seen.clear()


class _SeenError(Exception):
    """What was looked for has been seen: the rest of a forward pass is left out."""


def edited_modules(model: nn.Module, layers: Sequence[int]) -> tuple[list[nn.Linear], nn.Module]:
    """The down-projections of some layers' MLPs, and the block behind whose output the last one's is seen.

    Args:
        model: a causal LM.
        layers: numbers of layers with an MLP, ascending.

    Raises:
        InputError: an MLP has no linear layer that gives the residual stream's width.
    """
    names, width = find_mlp_blocks(model), hidden_size(model)
    downs = []
    for layer in layers:
        found = [m for m in model.get_submodule(names[layer]).modules() if isinstance(m, nn.Linear)]
        found = [linear for linear in found if linear.out_features == width]
        if not found:
            raise InputError(f"{names[layer]} has no linear down-projection that MEMIT could edit")
        downs.append(found[-1])
    return downs, model.get_submodule(names[layers[-1]].rpartition(".")[0])


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _first(value: Any) -> Tensor:
    first: Tensor = value[0] if isinstance(value, tuple) else value
    return first
