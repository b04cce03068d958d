"""The hooks through which a model's forward passes are known to its memory layers.

They sit on the modules that token ids come to, hold nothing of any pass, and see to it that a block which gradient
checkpointing computes once more is computed in the forward pass that it repeats.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memlayers.tuner.current import current, holding
from memlayers.tuner.forward_pass import ForwardPass, cache_of

_CHECKPOINTS = ("_gradient_checkpointing_func", "checkpoint_fn")  # transformers' and torch's names of the function


class ForwardPassHooks:
    """Begins and ends a `ForwardPass` with each call of a model. One per model.

    Args:
        model: any wrapping of a causal LM.
        mlp: name of one of its MLP blocks.

    Attributes:
        decoder: the module that holds the decoder's layers.
        blocks: these.
    """

    def __init__(self, model: nn.Module, mlp: str) -> None:
        parts = mlp.split(".")
        outer = [model, *(model.get_submodule(".".join(parts[:i])) for i in range(1, len(parts)))]
        place = next(i for i, module in enumerate(outer) if isinstance(module, nn.ModuleList))
        self.blocks, outer = outer[place], outer[:place]
        self.decoder = outer[-1]
        self.handles: list[RemovableHandle] = []
        for module in outer:
            if "input_ids" in inspect.signature(type(module).forward).parameters:
                self.handles.append(module.register_forward_pre_hook(self.begin, with_kwargs=True))
                self.handles.append(module.register_forward_hook(self.end, with_kwargs=True, always_call=True))

    def detach(self) -> None:
        """Takes the hooks away."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begins a forward pass; a module within another one goes on with that one's."""
        ids, embeddings = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        if ids is None and args and isinstance(args[0], Tensor) and not args[0].is_floating_point():
            ids = args[0]
        given = current().token_ids
        if ids is None and embeddings is not None and given is not None and given.shape == embeddings.shape[:2]:
            ids = given
        outer = current().forward
        if outer is not None and outer.hooks is self and (ids is None or ids is outer.given):
            outer.depth += 1
            return
        if torch.is_grad_enabled() and module.training:
            self._follow_checkpoints()
        if outer is not None and outer.hooks is self:
            outer.forget()
        forward = ForwardPass(ids, kwargs, embeddings)
        forward.hooks, forward.outer = self, outer
        current().forward = forward

    def end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Ends it; `output` is None where it failed."""
        forward = current().forward
        if forward is None or forward.hooks is not self:
            return
        if forward.depth:
            forward.depth -= 1
            return
        current().forward = forward.outer
        if output is not None:
            cache = _cache_in(output)
            forward.finish(cache_of(kwargs) if cache is None else cache)

    def _follow_checkpoints(self) -> None:
        for module in (self.decoder, *self.blocks.children()):
            for name in _CHECKPOINTS:
                function = getattr(module, name, None)
                if function is not None and not isinstance(function, _Checkpoint):
                    setattr(module, name, _Checkpoint(function))


class _Checkpoint:
    """A checkpoint function; what it computes once more is computed in the forward pass that it repeats."""

    def __init__(self, checkpoint: Any) -> None:
        self.checkpoint = checkpoint

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        held = {name: getattr(current(), name) for name in ("forward", "bare", "ungated", "rows")}
        return self.checkpoint(partial(_run_with, held, function), *args, **kwargs)


def _run_with(held: dict[str, Any], function: Any, *args: Any, **kwargs: Any) -> Any:
    with holding(**held):
        return function(*args, **kwargs)


def _cache_in(output: Any) -> Any:
    """The key-value cache that a model returns; None for none."""
    if isinstance(output, tuple):
        return next((each for each in output if hasattr(each, "get_seq_length")), None)
    cache = getattr(output, "past_key_values", None)
    return getattr(output, "cache_params", None) if cache is None else cache
