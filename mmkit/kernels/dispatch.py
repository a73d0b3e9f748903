"""Which implementation of an op runs: chosen in one place, said once, and never exchanged for another in silence.

An implementation is a function marked with `kernel`, which says where it runs, and registered through the hook
`mmkit_kernels`. The environment variable `MMKIT_KERNELS` names some (``attention=dense,nearest_code=reference``, or
``all=triton``); for the other ops the recipe's section ``kernels:`` does (`using`); for the rest the op chooses among mmkit's own.
On a GPU that may be a kernel that has proved itself there (`mmkit.kernels.proof`), which a kernel that is named need not.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkit import ops, registry
from mmkit.errors import ContractError, PluginError
from mmkit.kernels import proof
from mmkit.registry import AUTO, OPS

VARIABLE = "MMKIT_KERNELS"
"""The environment variable that names implementations to use everywhere."""
EVERY = "all"
"""In it, in place of an op: every op that has an implementation of the name, other entries excepted."""

log = logging.getLogger(__name__)
Choices = tuple[tuple[str, str], ...]
"""Names of implementations, by op."""
Own = str | tuple[str, str]
"""What mmkit chooses by itself: an implementation, or one that must have proved itself on the GPU at hand and one for elsewhere."""
_recipe: ContextVar[Choices] = ContextVar("kernels")
_made: ContextVar[dict[Any, Kernel]] = ContextVar("made")
"""What has been chosen under the recipe's names, so that ops, which ask at every call, have a cheap answer."""


@dataclass(frozen=True)
class Site:
    """Where an op is to run.

    `dtype` is None where it is not known yet, `backward` tells that gradients are wanted, `capability` is that of a CUDA
    device and ``(0, 0)`` elsewhere; an `index` of None is the current device. `window`: a mask with a sliding window (of
    attention alone).
    """

    device: str
    dtype: torch.dtype | None = None
    backward: bool = False
    capability: tuple[int, int] = (0, 0)
    index: int | None = None
    window: bool = False

    @classmethod
    def of(cls, x: Tensor, *others: Tensor) -> Site:
        """Where the tensors are."""
        backward = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *others))
        return cls(x.device.type, x.dtype, backward, capability(x.device), x.device.index)


@dataclass(frozen=True)
class Limits:
    """Where an implementation runs. An empty tuple is no limit.

    `devices` are types (``cpu``, ``cuda``), `dtypes` names (``float32``), `capability` the least one of a CUDA device;
    on the devices of `forward_only` it gives no gradients. `windows`: a kernel for attention that knows sliding windows.
    """

    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    capability: tuple[int, int] = (0, 0)
    forward_only: tuple[str, ...] = ()
    windows: bool = False

    def refusal(self, site: Site) -> str:
        """Why it does not run there; empty where it does."""
        if self.devices and site.device not in self.devices:
            return f"runs on {' and '.join(self.devices)}, and this is {site.device}"
        if site.window and not self.windows:
            return "knows no sliding windows"
        name = str(site.dtype).removeprefix("torch.")
        if self.dtypes and site.dtype is not None and name not in self.dtypes:
            return f"takes {' and '.join(self.dtypes)}, and this is {name}"
        if site.device == "cuda" and site.capability < self.capability:
            needed, there = ("{}.{}".format(*c) for c in (self.capability, site.capability))
            return f"needs a GPU of compute capability {needed}, and this one has {there}"
        return f"gives no gradients on {site.device}" if site.backward and site.device in self.forward_only else ""


def kernel(
    *, trials: str = "", measure: str = "reference", **limits: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks a function as an implementation of an op, within `Limits`: ``@kernel(devices=("cuda",), capability=(8, 0))``.

    One of mmkit's own that must prove itself before mmkit chooses it does so in the `trials` (``module:function``, which gives
    some `mmkit.kernels.trials.Trial`), beside the implementation of the op named by `measure`.
    """

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.limits = Limits(**limits)  # type: ignore[attr-defined]
        function.proof = (trials, measure)  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True)
class Kernel:
    """One implementation of an op, loaded. Calling it adds, to whatever it raises, a note of what has failed."""

    op: str
    name: str
    owner: str
    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        try:
            return self.function(*args)
        except Exception as error:  # raised on as it is: nothing else takes this one's place
            error.add_note(f"in the kernel {self.name!r} of {self.owner} for {self.op}; {_other(self.op)}")
            raise

    @property
    def limits(self) -> Limits:
        """Where it runs."""
        return self.function.limits  # type: ignore[attr-defined]


def choose(op: str, site: Site, own: Own, reason: str, *, named: str = AUTO) -> Kernel:
    """The implementation of an op that runs there: the one `named` by the code that asks, by the environment or by the recipe,
    else mmkit's `own`.

    Where `own` are two, it is the first on GPUs where that runs and has proved itself, which it does when it is asked for
    first; else the second. `reason` says why that one is mmkit's choice. What is chosen is logged when it is chosen first.
    Raises `ContractError` where the one that is named does not run there, `PluginError` where there is none of that name.
    """
    return _chosen(op, site, own, reason, named, registry.load(), os.environ.get(VARIABLE, ""), _recipe.get(()))[0]


def choose_for(op: str, own: Own, reason: str, x: Tensor, *others: Tensor | None) -> Kernel:
    """The same for tensors: where `x` is, in its dtype, with gradients where any of them wants one; None wants none.

    `torch.compile` takes the choice as made once, when it compiles; inside of `using` the environment is what it was where that
    began.
    """
    backward = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *others))
    if torch.compiler.is_compiling() or (made := _made.get(None)) is None:
        return _LOADED[_key(op, x.device.type, x.device.index, x.dtype, backward, own, reason)]
    where = (op, x.device, x.dtype, backward, own)
    if (known := made.get(where)) is None:
        key, settled = _asked(op, x.device.type, x.device.index, x.dtype, backward, own, reason)
        known = _LOADED[key]
        if settled:
            made[where] = known
    return known


def _key(*where: Any) -> tuple[str, str, str]:
    return _asked(*where)[0]


def _asked(
    op: str, device: str, index: int | None, dtype: torch.dtype, backward: bool, own: Own, reason: str
) -> tuple[tuple[str, str, str], bool]:
    """The choice, and whether it may be remembered."""
    where = (op, device, index, dtype, backward, own, reason)
    try:
        return _key_under(*where, registry.load(), os.environ.get(VARIABLE, ""), _recipe.get(())), True
    except _ForNow as choice:
        return choice.key, False


# What `torch.compiler.assume_constant_result` does; that one imports the whole compiler, which takes seconds.
_key._dynamo_marked_constant = True  # type: ignore[attr-defined]
_LOADED: dict[tuple[str, str, str], Kernel] = {}


class _ForNow(Exception):
    """A choice that is not to be remembered: a cache keeps nothing of a call that raises."""

    def __init__(self, key: tuple[str, str, str]) -> None:
        super().__init__()
        self.key = key


# What the answer depends on is all in the arguments.
@functools.lru_cache(1024)
def _key_under(
    op: str, device: str, index: int | None, dtype: torch.dtype, backward: bool, own: Own, reason: str, *under: Any
) -> tuple[str, str, str]:
    place = torch.device(device) if index is None else torch.device(device, index)
    site = Site(device, dtype, backward, capability(place), index)
    chosen, settled = _chosen(op, site, own, reason, AUTO, *under)
    key = (op, chosen.owner, chosen.name)
    _LOADED[key] = chosen
    if not settled:
        raise _ForNow(key)
    return key


def _chosen(
    op: str, site: Site, own: Own, reason: str, named: str, known: registry.Registry, environment: str, recipe: Choices
) -> tuple[Kernel, bool]:
    """The choice, and whether it may be remembered."""
    name, source = _named(op, environment, recipe) if named == AUTO else (named, "named in code")
    settled = True
    if name == AUTO:
        name, reason, settled = (own, reason, True) if isinstance(own, str) else _proved(op, site, own, reason, known)
    chosen = load(op, name, known)
    if refusal := chosen.limits.refusal(site):
        raise ContractError(source or op, f"the kernel {chosen.name!r} of {op} {refusal}", _other(op))
    _say_once(op, site.device, chosen.name, source or reason)
    return chosen, settled


def _proved(op: str, site: Site, own: tuple[str, str], reason: str, known: registry.Registry) -> tuple[str, str, bool]:
    """Which of two, why, and whether that may be remembered: the first where it runs and has proved itself."""
    wanted, plain = own
    candidate = load(op, wanted, known)
    if site.dtype is None or not proof.possible(site.device, site.capability) or candidate.limits.refusal(site):
        return plain, reason, True
    trials, measure = candidate.function.proof  # type: ignore[attr-defined]
    found = proof.of(
        proof.Subject(
            op, wanted, candidate.function, trials, measure, load(op, measure, known).function,
            load(op, "reference", known).function, site.dtype, site.backward,
        ),
        torch.device(site.device) if site.index is None else torch.device(site.device, site.index),
    )  # fmt: skip
    if found.passed:
        return wanted, "it has proved itself on this GPU", True
    if found.failed:
        name = str(site.dtype).removeprefix("torch.")
        _warn_once(
            f"{op} on {site.device} in {name}{' with gradients' if site.backward else ''}: {plain}, since {wanted} has failed its "
            f"proof: {found.facts}. `{VARIABLE}={op}={wanted}` forces it, `{VARIABLE}={op}={plain}` silences this"
        )
    return plain, f"{reason}; {f'{wanted} has failed its proof' if found.failed else found.facts}", found.settled


@contextmanager
def using(kernels: Mapping[str, str]) -> Iterator[None]:
    """Inside, these implementations run, by op; the environment still has the last word."""
    with _under(tuple({**dict(_recipe.get(())), **kernels}.items())):
        yield


def recalled() -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """The `context_fn` of `torch.utils.checkpoint.checkpoint`: what is computed again runs by the kernels chosen now.

    It runs in the backward pass: after `using` has ended, or, for a GPU, in a thread that never was inside.
    """
    choices = _recipe.get(())
    return lambda: (nullcontext(), _under(choices))


@contextmanager
def _under(choices: Choices) -> Iterator[None]:
    chosen = _recipe.set(choices)
    made = _made.set(_made_under(choices, os.environ.get(VARIABLE, ""), registry.load()))
    try:
        yield
    finally:
        _made.reset(made)
        _recipe.reset(chosen)


@functools.lru_cache(64)
def _made_under(*under: Any) -> dict[Any, Kernel]:
    """The same dictionary wherever the same is named."""
    return {}


def load(op: str, name: str, known: registry.Registry | None = None) -> Kernel:
    """An implementation by its name or ``owner/name``. Raises `PluginError` where there is none, or it is not marked."""
    entry = ops.kernel(known or registry.load(), op, name)
    function = entry.load()
    if not isinstance(getattr(function, "limits", None), Limits):
        raise PluginError(
            f"kernel {entry.name!r}", f"{entry.target} does not say where it runs", "mark it with `@kernel(...)`"
        )
    return Kernel(op, name, entry.owner, function)


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA device; ``(0, 0)`` of any other."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _named(op: str, environment: str, recipe: Choices) -> tuple[str, str]:
    """The name that the environment or the recipe gives, and which of them; `AUTO` and nothing where none does."""
    chosen = _parsed(environment) if environment else {}
    if op in chosen:
        return chosen[op], f"{VARIABLE}={environment}" if chosen[op] != AUTO else ""
    name = dict(recipe).get(op, AUTO)
    return name, f"kernels.{op}" if name != AUTO else ""


def _parsed(text: str) -> dict[str, str]:
    """Raises `ContractError` on another form, `PluginError` on a name that is not known."""
    chosen: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        op, _, name = (word.strip() for word in item.partition("="))
        if not name or op in chosen:
            fact = f"{op!r} is written twice" if name else f"{item!r} names no implementation"
            raise ContractError(VARIABLE, fact, "write `op=implementation`, with commas between them")
        chosen[op] = name
    every = chosen.pop(EVERY, None)
    if every is not None:
        having = {op: every for op in OPS if every in ops.names(registry.load(), op)}
        if not having:
            raise PluginError(VARIABLE, f"no op has an implementation {every!r}", "`mmkit list kernel` names them all")
        chosen = {**having, **chosen}
    for op, name in chosen.items():
        try:
            ops.check(registry.load(), op, name)
        except PluginError as error:
            raise PluginError(VARIABLE, error.problem.fact, error.problem.remedy, error.problem.rule) from None
    return chosen


def _other(op: str) -> str:
    return f"`{VARIABLE}={op}=NAME` takes another: {', '.join((AUTO, *ops.names(registry.load(), op)))}"


@functools.cache
def _warn_once(text: str) -> None:
    log.warning(text)


@functools.cache
def _say_once(op: str, device: str, name: str, reason: str) -> None:
    log.info("%s on %s: %s (%s)", op, device, name, reason)
