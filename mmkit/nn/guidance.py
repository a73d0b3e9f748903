"""Classifier-free guidance: combining the predictions of named branches. `contracts.options.Guidance` has the formulas.

A branch is one run of the model: ``full`` sees all context, ``dropped`` none of it, ``no_text`` the images only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mmkit.contracts.options import Guidance

FULL = "full"
DROPPED = "dropped"
NO_TEXT = "no_text"


def resolve(guidance: Guidance | None, scale_override: float | None = None) -> Guidance:
    """The guidance of one call: a head's own (None: off), with `scale_override` for its scale where one is given."""
    guidance = guidance or Guidance()
    return guidance if scale_override is None else replace(guidance, scale=scale_override)


def branches(guidance: Guidance | None, scale_override: float | None = None) -> tuple[str, ...]:
    """The branches a span needs."""
    guidance = resolve(guidance, scale_override)
    if guidance.image_scale is not None and not guidance.scale == guidance.image_scale == 1:
        return (FULL, DROPPED, NO_TEXT)
    return (FULL,) if guidance.scale == 1 else (FULL, DROPPED)


def acts(guidance: Guidance | None, progress: float) -> bool:
    """False where `progress` is outside the guidance's interval, and the prediction is that of ``full`` alone."""
    start, stop = resolve(guidance).interval
    return start <= progress <= stop


def combine(
    guidance: Guidance | None, predictions: Mapping[str, Tensor], progress: float, scale_override: float | None = None
) -> Tensor:
    """One prediction from those of the branches, each ``[S, ...]`` of one span, in float32.

    Args:
        guidance: the head's own; None is off unless `scale_override` is given.
        predictions: by branch name; only ``full`` is needed where guidance does not act.
        progress: how far the span is, from 0 to 1.
        scale_override: what one call asks for instead of the guidance's own scale.
    """
    guidance = resolve(guidance, scale_override)
    full = _exact(predictions[FULL])
    names = branches(guidance)
    if names == (FULL,) or not acts(guidance, progress):
        return full
    strength = guidance.scale if guidance.schedule == "constant" else 1 + (guidance.scale - 1) * progress
    dropped = _exact(predictions[DROPPED])
    if guidance.image_scale is None:
        guided = dropped + strength * (full - dropped)
    else:
        image = _exact(predictions[NO_TEXT])
        guided = dropped + guidance.image_scale * (image - dropped) + strength * (full - image)
    return _rescale(guided, full, guidance.rescale) if guidance.rescale else guided


def _rescale(guided: Tensor, full: Tensor, share: float) -> Tensor:
    """Pulls the standard deviation over the span's whole prediction back to that of `full` (Lin et al. 2023, section 3.4)."""
    # An untrained head may predict nothing but zeros.
    return guided * (share * full.std() / guided.std().clamp_min(1e-12) + 1 - share)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
