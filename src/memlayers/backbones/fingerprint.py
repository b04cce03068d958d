"""What tells one backbone from another."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from memlayers.backbones.blocks import find_mlp_blocks, hidden_size, text_config
from memlayers.utils.errors import InputError

_PROBE_ROWS = 64  # added tokens come after these
_PROBE_TOLERANCE = 0.02  # bf16 and fp16 copies of one backbone differ by < 0.002, two backbones by about 1


def backbone_fingerprint(model: nn.Module) -> dict[str, Any]:
    """What tells one backbone from another in any dtype and with any tokens added.

    Returns:
        {"model_type": str, "hidden_size": int, "layers": int, "vocab_size": int, "probe": 8 floats}, fit for
        JSON. The probe is the RMS of the input embedding's first 64 rows and 7 projections of these rows in
        units of it; empty where the weights are not at hand (meta device).
    """
    config = text_config(model)
    return {
        "model_type": config.model_type,
        "hidden_size": hidden_size(model),
        "layers": len(find_mlp_blocks(model)),
        "vocab_size": int(config.vocab_size),
        "probe": _probe(model),
    }


def check_fingerprint(expected: dict[str, Any], model: nn.Module) -> None:
    """Checks that `model` is the backbone that `expected` was taken from.

    Raises:
        InputError: naming what differs. A larger vocabulary (added tokens) is no difference.
    """
    actual = backbone_fingerprint(model)
    differing = [key for key in ("model_type", "hidden_size", "layers") if expected.get(key) != actual[key]]
    if actual["vocab_size"] < expected.get("vocab_size", 0):
        differing.append("vocab_size")
    described = [f"{key} is {actual[key]} and not {expected.get(key)}" for key in differing]
    if not described and not _same_probe(expected.get("probe", []), actual["probe"]):
        described = ["its embedding weights differ"]
    if described:
        raise InputError(
            f"this memory was made for another backbone: {', '.join(described)}; load the backbone it was "
            "taught on, or teach a memory for this one"
        )


@torch.no_grad()
def _probe(model: Any) -> list[float]:
    weight = model.get_input_embeddings().weight
    if weight.is_meta:
        return []
    rows = weight[:_PROBE_ROWS].to("cpu", torch.float64).flatten()
    rms = float(rows.square().mean().sqrt())
    # Cosines of incommensurable frequencies: near-orthogonal directions that need no random generator.
    positions = torch.arange(rows.numel(), dtype=torch.float64)
    waves = [torch.cos(math.sqrt(prime) * (positions + 1)) for prime in (2, 3, 5, 7, 11, 13, 17)]
    scale = math.sqrt(2 / rows.numel()) / max(rms, 1e-30)
    return [round(value, 6) for value in (rms, *(float(rows @ wave) * scale for wave in waves))]


def _same_probe(expected: list[float], actual: list[float]) -> bool:
    if not expected or not actual:
        return True
    (rms, *projections), (actual_rms, *actual_projections) = expected, actual
    return abs(rms - actual_rms) <= _PROBE_TOLERANCE * max(abs(rms), abs(actual_rms)) and all(
        abs(a - b) <= _PROBE_TOLERANCE for a, b in zip(projections, actual_projections, strict=True)
    )
