"""The PEFT tuner: puts memory layers into a backbone, and takes them out again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from memlayers.backbones import backbone_fingerprint, check_fingerprint, default_layers, find_mlp_blocks, hidden_size
from memlayers.pool.value_pool import ValuePool
from memlayers.tuner.config import METHOD, MemoryConfig
from memlayers.tuner.current import current, holding
from memlayers.tuner.hooks import ForwardPassHooks
from memlayers.tuner.layer import MERGE_REFUSAL, MemoryLayer
from memlayers.utils.errors import InputError


class MemoryModel(BaseTuner):
    """A backbone whose MLP blocks at the configured layers are wrapped in `MemoryLayer`.

    Made by `peft.get_peft_model(model, MemoryConfig(...))`, or by loading an adapter.
    """

    prefix = f"{METHOD}_"
    tuner_layer_cls = MemoryLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> MemoryConfig:
        """Settles what the config leaves open."""
        assert isinstance(peft_config, MemoryConfig)
        if peft_config.fingerprint is not None:
            check_fingerprint(peft_config.fingerprint, self.model)
        config, blocks = peft_config, find_mlp_blocks(self.model)
        config.layers = _check_layers(config.layers or default_layers(len(blocks)), len(blocks))
        config.key_dim = config.key_dim or hidden_size(self.model) // config.shape.heads // 2 * 2
        if config.key_dim == 0:
            raise InputError(f"{config.heads} heads are too many for this backbone's width: take fewer")
        config.fingerprint = config.fingerprint or backbone_fingerprint(self.model)
        config.target_modules = [blocks[layer] for layer in config.layers]
        return config

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As peft's. A memory that is added with another one's own configuration is addressed and gated as that one.

        TRL makes the reference of DPO so, and copies the parameters only.
        """
        if memory_layers(model, adapter_name):
            raise InputError(
                f"this backbone carries a memory named {adapter_name!r} already: take it off first (model.unload()), "
                "load the backbone again, or give the new one a name of its own (adapter_name=...)"
            )
        given = self.peft_config[adapter_name]
        same = (name for name, known in self.peft_config.items() if known is given and name != adapter_name)
        like = next(same, None)
        self.peft_config[adapter_name] = copy.copy(given)  # settled below, and a caller's may serve several models
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if like is not None:
            for layer in memory_layers(model, adapter_name):
                layer.copy_addressing(like, adapter_name)

    def _create_and_replace(  # type: ignore[override]  # peft hands in the config prepared above
        self,
        peft_config: MemoryConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = find_mlp_blocks(self.model).index(current_key)
        owner = next(iter(memory_layers(self.model, adapter_name)), None)
        if not isinstance(target, MemoryLayer):
            others = memory_layers(self.model)
            hooks = others[0].hooks if others else ForwardPassHooks(self.model, current_key)
            target = MemoryLayer(target, hidden_size(self.model), hooks)
            self._replace_module(parent, target_name, target, target)
        target.add_adapter(adapter_name, peft_config, layer, owner)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: Any) -> None:
        setattr(parent, child_name, new_module)  # peft would also copy `.weight`, which an MLP block lacks

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone alone, without the hooks."""
        found = {layer.hooks for layer in memory_layers(self.model)}
        unloaded = super()._unload_and_optionally_merge(*args, **kwargs)
        for hooks in found:
            if hooks is not None:
                hooks.detach()
        return unloaded

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What `DistributedDataParallel`, which reads this as it wraps a model, leaves alone: pools that learn.

        Their read logs are gathered in its place (`pool.gathering`). By the names that it finds around a PEFT model,
        this one, and a compiled one.
        """
        return [
            f"{outer}{name}.{each}"
            for name, pool in self.named_modules()
            if isinstance(pool, ValuePool) and pool.parameter.requires_grad
            for each in pool.share_reads()
            for outer in ("", "base_model.", "_orig_mod.base_model.")
        ]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's own; token ids that are given beside embeddings tell the memory the names in them."""
        beside = kwargs.get("inputs_embeds") is not None
        with holding(token_ids=kwargs.get("input_ids") if beside else current().token_ids):
            return self.model.generate(*args, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Has each row of a batch read the memory that peft's argument `adapter_names` has for it."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        unknown = sorted(set(names) - {*self.peft_config, "__base__"})
        if unknown:
            raise InputError(
                f"adapter_names has {unknown[0]!r}: this model has the memories {', '.join(self.peft_config)}"
            )
        with holding(rows=tuple(names)):
            yield

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Leaves every dtype as built: float32, except for the pool, which peft would upcast to float32."""

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(MERGE_REFUSAL)


def memory_layers(model: nn.Module, adapter: str | None = None) -> list[MemoryLayer]:
    """The memory layers of a model in layer order; with `adapter`, those that hold a memory of this name."""
    layers = [module for module in model.modules() if isinstance(module, MemoryLayer)]
    return layers if adapter is None else [layer for layer in layers if adapter in layer.memlayers_config]


def _check_layers(layers: list[int], depth: int) -> list[int]:
    outside = [layer for layer in layers if layer >= depth]
    if outside:
        raise InputError(f"layer {outside[0]} is out of range: this backbone has the layers 0 to {depth - 1}")
    return sorted(layers)
