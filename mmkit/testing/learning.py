"""Checks that what a head learns is what it samples."""

from __future__ import annotations

import torch

from mmkit.contracts.options import Sampling
from mmkit.testing.cases import WIDTH, HeadCase, seeded
from mmkit.testing.catalogue import check, demand
from mmkit.testing.heads import closed
from mmkit.testing.standin import ask, fit, write

STEPS, COUNT = 150, 4
CLOSE = 0.35
"""How far, in the units of latents of unit variance, samples may lie from the one span a head was trained on."""


@check("head", slow=True)
def it_learns_a_span_and_samples_it_back(case: HeadCase) -> None:
    """Trained on one span until it knows it, a head's own sampling gives that span: prepare, loss and sampling agree."""
    part, stream = case.build(), closed(case)
    if part.vocabulary is None:
        span = torch.linspace(-1.5, 1.5, COUNT * WIDTH).reshape(COUNT, WIDTH)
    else:
        piece = part.vocabulary.of(stream)
        span = piece.offset + torch.tensor([1, 7, 3, 5]) % piece.size
    with seeded(0):
        model, _ = fit(part.train(), span, stream, steps=STEPS, lr=1e-2)
    model.eval()
    sampling = Sampling(temperature=0.0, steps=8)
    found = write(model, ask(stream, (COUNT,), seed=3, sampling=sampling))
    if part.vocabulary is not None:
        demand(torch.equal(found, span), "step", f"trained on {span.tolist()} alone, it writes {found.tolist()}")
        return
    error = (found - span).square().mean().sqrt()
    demand(
        error < CLOSE,
        "step",
        f"trained on one span alone, what it samples is {error:.2f} away from it (at most {CLOSE})",
    )
