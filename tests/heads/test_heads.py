"""What must hold of every head holds in every dress: the conformance kit, with more options than it tries by itself."""

from __future__ import annotations

from mmkit.testing import conformance

DRESSES = {
    ("head", "ar"): ({"depth": 2, "dim": 16, "label_smoothing": 0.1, "z_loss": 1e-4, "top_k": 4},),
    ("head", "masked"): (
        {"schedule": "linear", "weighting": "inverse", "blocks": 3, "steps": 6, "top_p": 0.9, "length": 12},
    ),
    ("head", "diffusion"): (
        {"schedule": "cosine", "min_snr": 5.0, "steps": 4},
        {"time": "token", "predict": "velocity", "terminal_snr": "zero", "sampler": "ddim", "steps": 4},
        {"time": "adaln", "predict": "clean", "train_steps": 50, "depth": 2, "steps": 4},
    ),
    ("head", "flow"): (
        {"time": "token", "predict": "clean", "weighting": "logit_normal", "sampler": "heun", "steps": 4},
        {"time": "adaln", "depth": 2, "shift": 3.0, "steps": 4},
        {"time": "none", "depth": 3, "dim": 16, "guidance": {"scale": 2.0}, "steps": 4},
    ),
}

test_heads = conformance(*(f"{kind}/{name}" for kind, name in DRESSES), examples=DRESSES, slow=False)
