"""Backbones: loading one, fetching one, finding its MLP blocks by structure, and telling one from another."""

from memlayers.backbones.blocks import (
    adds_residual,
    context_length,
    default_layers,
    find_mlp_blocks,
    hidden_size,
    takes_logits_to_keep,
)
from memlayers.backbones.fetching import fetch_backbone
from memlayers.backbones.fingerprint import backbone_fingerprint, check_fingerprint
from memlayers.backbones.loading import (
    POCKET,
    device_chosen,
    device_named,
    lasting_name,
    load_backbone,
    quiet_wrapping,
)

__all__ = [
    "POCKET",
    "adds_residual",
    "backbone_fingerprint",
    "check_fingerprint",
    "context_length",
    "default_layers",
    "device_chosen",
    "device_named",
    "fetch_backbone",
    "find_mlp_blocks",
    "hidden_size",
    "lasting_name",
    "load_backbone",
    "quiet_wrapping",
    "takes_logits_to_keep",
]
