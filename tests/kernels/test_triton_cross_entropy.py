"""The Triton kernels of linear cross-entropy in the interpreter, against the plain statement."""

from __future__ import annotations

from typing import Any

import pytest
from interpreting import interpret

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

# Outputs are float32 sums. Of gradients float32 has sums of a few hundred numbers; half rounds each part of one to 11 bits.
OUTPUTS, GRADIENTS = 1e-6, {"torch.float32": 2e-6, "torch.float16": 1e-3}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What the interpreter made of every case."""
    return interpret("interpreted_cross_entropy")


def test_outputs_and_gradients(interpreted: dict[str, Any]) -> None:
    assert len(interpreted["cases"]) == 11
    for name, found in interpreted["cases"].items():
        assert found["dtypes"][0] == "torch.float32", name
        assert max(found["errors"][:2]) < OUTPUTS, (name, found)
        assert max(found["errors"][2:]) < GRADIENTS[found["dtypes"][1]], (name, found)
        assert found["same"], f"{name}: two runs gave different bits"
        assert found["finite"], f"{name}: something is left unwritten"
        assert found["least"] >= 0, f"{name}: a token has more than all of the probability"


def test_the_logits_are_never_there(interpreted: dict[str, Any]) -> None:
    """The largest tensor is the tile of gradients: 150 tokens by 160 codes, of 150 by 300 logits."""
    assert interpreted["largest"] == 150 * 160


def test_it_is_a_sound_op_and_compiled(interpreted: dict[str, Any]) -> None:
    assert all(set(found.values()) == {"SUCCESS"} for found in interpreted["sound"])
    assert max(interpreted["compiled"]) < 1e-6  # float32
