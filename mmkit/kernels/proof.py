"""Whether a kernel is right on the GPU at hand, found out before mmkit chooses it by itself.

On a few small inputs (`trials`) its outputs and gradients are held against the plain statement in float64: they must be about
as near as those of a plain kernel in the same dtype are, and the same bits a second time. That takes some seconds, most of which
go into compiling what is needed anyway, and is remembered on disk (`verdicts`).

It is a choice made before anything runs. A kernel that is named is not proved, and raises where it fails.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkit.kernels import verdicts
from mmkit.kernels.trial import Trial
from mmkit.kinds import named

CAPABILITY = (8, 0)
"""The least compute capability of GPUs on which mmkit chooses kernels that must prove themselves."""
MULTIPLE = 3
"""How many times as far from the exact result as the plain kernel: sums in another order, one rounding more."""
LEAST = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
"""Errors, relative to the largest number of a result, that no kernel can be blamed for: one rounding, or sums in float32."""
POISON = 2 << 20
"""Bytes that torch reserves at once for small tensors."""

log = logging.getLogger(__name__)
Function = Callable[..., Any]


@dataclass(frozen=True)
class Subject:
    """What is proved: a kernel of an op in one dtype, with gradients or without, in the trials that `trials` (``module:function``)
    gives; `plain`, of the name `measure`, sets the measure of what is near, `reference` says what is right."""

    op: str
    name: str
    kernel: Function
    trials: str
    measure: str
    plain: Function
    reference: Function
    dtype: torch.dtype
    backward: bool

    @property
    def title(self) -> str:
        """The same in words."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op}={self.name} in {dtype}{' with gradients' if self.backward else ''}"


@dataclass(frozen=True)
class Verdict:
    """What a proof came to: `passed`, `failed`, or neither where it could not be made. `facts` says how, or why.

    It is `kept` on disk, or `settled` for this process at least.
    """

    passed: bool
    facts: str
    failed: bool = False
    kept: bool = False
    settled: bool = True


_known: dict[tuple[str, str], Verdict] = {}
_lock = threading.Lock()
_proving = threading.local()


def possible(device: str, capability: tuple[int, int]) -> bool:
    """Whether there are proofs on such a device at all: Triton runs there, and not in its interpreter."""
    return device == "cuda" and capability >= CAPABILITY and not torch.version.hip and _compiles()


@functools.cache
def _compiles() -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    from mmkit.kernels.triton_launch import interpreted

    return not interpreted()


def of(subject: Subject, device: torch.device) -> Verdict:
    """The verdict on a kernel on a device: the one that is known, or that of a proof made now.

    Nothing is proved while a CUDA graph is captured, or while gradients are computed, whose thread for the GPU may be this one.
    """
    key = (subject.title, _model(device))
    if found := _known.get(key):
        return found
    if said := verdicts.recall(device, subject.title):
        return _known.setdefault(key, Verdict(said["passed"], said["facts"], not said["passed"], kept=True))
    if hindered := _hindrance(device):
        return Verdict(False, f"{subject.name} cannot be proved while {hindered}", settled=False)
    with _lock:
        if key not in _known:
            _known[key] = _made(subject, device)
        return _known[key]


def _model(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _hindrance(device: torch.device) -> str:
    if getattr(_proving, "now", False):
        return "another proof is made"
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is captured"
    return "gradients are computed" if torch._C._current_graph_task_id() != -1 else ""


def _made(subject: Subject, device: torch.device) -> Verdict:
    """A proof in a thread of its own: autocast, modes of torch, a graph being traced, CUDA streams and whether gradients are
    wanted are those of a thread."""
    found: list[Verdict] = []
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())

    def work() -> None:
        _proving.now = True
        try:
            with _alone(device):
                found.append(judged(subject, device))
        except torch.OutOfMemoryError as error:
            found.append(Verdict(False, f"there is no memory to prove {subject.name} ({_line(error)})"))
        except Exception as error:
            found.append(Verdict(False, f"it raises {_line(error)}", failed=True))

    begun = time.perf_counter()
    thread = threading.Thread(target=work, name=f"proof of {subject.title}", daemon=True)
    thread.start()
    thread.join()
    (verdict,) = found
    if verdict.failed and device.type == "cuda":
        verdict = _after(subject, device, verdict)
    if verdict.kept:
        verdicts.keep(device, subject.title, {"passed": verdict.passed, "facts": verdict.facts})
    if verdict.passed:
        log.info("%s has proved itself in %.1f s: %s", subject.title, time.perf_counter() - begun, verdict.facts)
    return verdict


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """On a GPU: with a CUDA stream of its own."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield


def _after(subject: Subject, device: torch.device, verdict: Verdict) -> Verdict:
    """The same; where the kernel has broken all of CUDA for this process, that is kept, so that the next one is spared."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        verdicts.keep(device, subject.title, {"passed": False, "facts": verdict.facts})
        error.add_note(
            f"the proof of {subject.title} has broken this process's use of the GPU; the next process knows, and leaves it out"
        )
        raise
    return verdict


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def judged(subject: Subject, device: torch.device) -> Verdict:
    """The proof itself, in the thread that calls. Raises whatever the kernel raises."""
    worst, count = 0.0, 0
    with torch.device("cpu"):
        trials: list[Trial] = list(named(subject.trials)())
    for trial in trials:
        _poison(device)
        # The kernel first: what nobody wrote may hold what another has left there.
        got = _results(trial, subject.kernel, subject, device)
        again = _results(trial, subject.kernel, subject, device)
        plain = _results(trial, subject.plain, subject, device)
        want = _results(trial, subject.reference, subject, torch.device("cpu"), torch.float64)
        for (what, mine), (_, second), (_, beside), (_, exact) in zip(got, again, plain, want, strict=True):
            share, fact = _off(mine, beside, exact, subject)
            if not fact and not torch.equal(mine, second):
                fact = "is not the same bits a second time"
            if fact:
                return Verdict(False, f"{trial.title}: {what} {fact}", failed=True, kept=True)
            worst, count = max(worst, share), count + 1
    facts = f"{count} results, off by at most {worst:.2f} of what is allowed, {MULTIPLE} times the error of {subject.measure}"
    return Verdict(True, facts, kept=True)


def _off(got: Tensor, plain: Tensor, want: Tensor, subject: Subject) -> tuple[float, str]:
    """The error as a share of the one allowed, and what is wrong, if anything is."""
    if got.shape != want.shape or got.dtype != plain.dtype:
        return 0.0, f"is {got.dtype} {list(got.shape)}"
    if not want.is_floating_point():
        return 0.0, "" if torch.equal(got, want) else "differs"
    if not got.isfinite().all():
        return 0.0, "is not finite everywhere"
    if not want.numel():
        return 0.0, ""
    shares = []
    for norm in (float("inf"), 2):
        mine, beside = (float((x.double() - want).norm(norm)) for x in (got, plain))
        allowed = MULTIPLE * beside + LEAST[subject.dtype] * float(want.norm(norm))
        if not mine <= allowed:
            size = "largest error" if norm != 2 else "error in the L2 norm"
            return 0.0, f"has a {size} of {mine:.2g}, and {subject.measure} has {beside:.2g}"
        shares.append(mine / allowed if allowed else 0.0)
    return max(shares), ""


def _results(
    trial: Trial, function: Function, subject: Subject, device: torch.device, dtype: torch.dtype | None = None
) -> list[tuple[str, Tensor]]:
    """Outputs and, where they are wanted, gradients, by name, on the CPU; for the inputs as rounded to the dtype that is proved."""
    given = [
        x.to(subject.dtype).to(device, dtype or subject.dtype).clone() if x.dtype == torch.float64 else x.to(device)
        for x in trial.inputs
    ]
    with torch.set_grad_enabled(subject.backward):
        leaves = {
            i: given[i].requires_grad_()
            for i, x in enumerate(trial.inputs)
            if subject.backward and x.dtype == torch.float64
        }
        found = trial.run(function, *given)
        outputs = (found,) if isinstance(found, Tensor) else found
        results = [(f"output {i}", x.detach()) for i, x in enumerate(outputs)]
        if subject.backward:
            learned = [x for x in outputs if x.requires_grad]
            gradients = torch.autograd.grad(learned, [*leaves.values()], [_direction(x) for x in learned])
            results += [(f"the gradient of input {i}", x) for i, x in zip(leaves, gradients, strict=True)]
    return [(what, x.cpu()) for what, x in results]


def _direction(x: Tensor) -> Tensor:
    """A gradient for an output, exact in every dtype."""
    return ((torch.arange(x.numel()) * 5 % 17 - 7) / 8).view(x.shape).to(x)


def _poison(device: torch.device) -> None:
    """Fills memory that is likely to be given out next: all its bits set are NaN in every dtype, and -1 where numbers are whole."""
    if device.type == "cuda":
        kept = [torch.full((POISON // 2,), 255, dtype=torch.uint8, device=device) for _ in range(2)]
        del kept
