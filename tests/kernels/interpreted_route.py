"""The router's Triton kernels in Triton's interpreter, run by `interpreting`.

Each case says whether choices, order and counts are those of the plain statement, and gives the relative errors (L2 norm)
of weights and sums, and of the gradient of each, against it in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from interpreting import relative
from torch import Tensor

from mmkit.kernels.route.reference import reference
from mmkit.kernels.route.scheme import Scheme
from mmkit.kernels.route.triton import _backward, _route, routed


def drawn(tokens: int, experts: int, *, ties: bool = False, biased: bool = False) -> tuple[Tensor, Tensor | None]:
    chance = torch.Generator().manual_seed(tokens + experts)
    logits = torch.randn(tokens, experts, generator=chance) * 2
    bias = torch.randn(experts, generator=chance) * 0.1 if biased else None
    return logits.round() if ties else logits, bias


def gradients(found: Sequence[Tensor | None], logits: Tensor) -> list[Tensor]:
    """Of a fixed weighting of each output that has one."""
    outputs = [x for x in found if x is not None and x.requires_grad]
    weights = [torch.sin(torch.arange(x.numel(), dtype=torch.float64)).view_as(x).to(x.dtype) + 0.5 for x in outputs]
    pairs = zip(outputs, weights, strict=True)
    return [torch.autograd.grad(x, logits, weight, retain_graph=True)[0] for x, weight in pairs]


def compare(logits: Tensor, bias: Tensor | None, scheme: Scheme) -> dict[str, Any]:
    ours = logits.clone().requires_grad_()
    wide = logits.double().requires_grad_()
    found, again = (routed(ours, bias, scheme) for _ in range(2))
    wanted = reference(wide, None if bias is None else bias.double(), scheme)
    plain = reference(logits, bias, scheme)
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if b is not None]
    floats = [(a, b) for a, b in pairs if b.is_floating_point()]
    both = [gradients(found, ours), gradients(wanted, wide)]
    return {
        "chosen": all(
            torch.equal(a, b) for a, b in zip(found, plain, strict=True) if a is not None and a.dtype == torch.int64
        )
        and torch.equal(found.stop_E, plain.stop_E),
        "types": all(a.dtype == (torch.float32 if b.is_floating_point() else b.dtype) for a, b in pairs),
        "shapes": all(a.shape == b.shape for a, b in pairs),
        "errors": [relative(a, b) for a, b in floats],
        "gradients": [relative(a, b) for a, b in zip(*both, strict=True)],
        "same": all(torch.equal(a, b) for a, b in zip(found, again, strict=True) if a is not None)
        and torch.equal(gradients(again[:2], ours)[0], both[0][0]),
    }


def sound() -> list[str]:
    """What `opcheck` says against the two operators, and whether a compiled call gives what an uncompiled one does."""
    wrong = []
    logits, bias = drawn(9, 6, biased=True)
    results = torch.library.opcheck(_route, (logits.requires_grad_(), bias, 2, True, True, 1.5, 3, 2, True, True))
    wrong += [f"route, {name}: {result}" for name, result in results.items() if result != "SUCCESS"]
    chosen = torch.tensor([[0, 3], [5, 1]])
    grads = torch.randn(2, 2), torch.randn(6), torch.randn(())
    results = torch.library.opcheck(_backward, (*grads, torch.randn(2, 6), chosen, False, True, 1.0, True, True))
    return wrong + [f"backward, {name}: {result}" for name, result in results.items() if result != "SUCCESS"]


def compiled() -> bool:
    """Whether one graph holds the op, for several numbers of tokens, forward and backward."""
    scheme = Scheme(2, "sigmoid", groups=3, groups_kept=2, shares=True, squares=True)

    def loss(logits: Tensor) -> Tensor:
        found = routed(logits * 2, None, scheme)
        return found.weight_Tk[:, 0].sum() + found.share_E[0] * found.square + found.count_E.sum()

    whole = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    right = True
    for tokens in (7, 40):
        results = []
        for run in (loss, whole):
            logits = drawn(tokens, 6)[0].requires_grad_()
            value = run(logits)
            results.append((value, *torch.autograd.grad(value, logits)))
        right &= all(map(torch.equal, *results))
    return right


def cases() -> dict[str, Any]:
    sums = {"shares": True, "squares": True}
    deepseek = {"score": "sigmoid", "groups": 4, "groups_kept": 2, "scale": 2.5}
    found: dict[str, Any] = {
        "softmax": compare(*drawn(130, 64), Scheme(8, **sums)),
        "softmax as it is": compare(*drawn(100, 8), Scheme(2, normalize=False, **sums)),
        "sigmoid": compare(*drawn(70, 16), Scheme(3, "sigmoid", **sums)),
        "sigmoid as it is": compare(*drawn(50, 5), Scheme(1, "sigmoid", normalize=False, scale=0.5, **sums)),
        "groups": compare(*drawn(70, 12), Scheme(4, groups=3, groups_kept=2, **sums)),
        "groups and a bias": compare(*drawn(130, 32, biased=True), Scheme(4, **deepseek, **sums)),
        "groups of one": compare(*drawn(40, 4, biased=True), Scheme(2, **deepseek)),
        "a bias": compare(*drawn(70, 12, biased=True), Scheme(3, squares=True)),
        "ties": compare(*drawn(70, 16, ties=True), Scheme(4, shares=True)),
        "ties in groups": compare(*drawn(70, 16, ties=True), Scheme(4, groups=4, groups_kept=2, **sums)),
        "all equal": compare(torch.zeros(100, 8), None, Scheme(2, **sums)),
        "all experts": compare(*drawn(40, 6), Scheme(6, **sums)),
        "one expert": compare(*drawn(40, 1), Scheme(1, **sums)),
        "one token": compare(*drawn(1, 8), Scheme(2, **sums)),
        "no token": compare(*drawn(0, 8), Scheme(2, **sums)),
        "many experts": compare(*drawn(70, 256), Scheme(8, "sigmoid", **sums)),
        "far apart": compare(drawn(40, 8)[0] * 40, None, Scheme(2, **sums)),
    }
    return {"compared": found, "sound": sound(), "compiled": compiled()}
