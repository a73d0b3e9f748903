"""Checks of state: it is all in parameters and buffers, is saved and loaded to the same bits, and lives on any device."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mmkit.contracts.part import Part
from mmkit.errors import ContractError
from mmkit.testing.cases import PartCase, duplicate, map_tensors
from mmkit.testing.catalogue import PARTS, Inapplicable, check, demand
from mmkit.testing.surroundings import outputs_after, same


@check(*PARTS)
def it_builds(case: PartCase) -> None:
    """The part is built from its example options, or from its defaults."""
    demand(isinstance(case.build(), Part), case.entry.target, "it is no part")


@check(*PARTS)
def it_builds_on_the_meta_device(case: PartCase) -> None:
    """On the meta device every tensor of its state is there, on meta, in the same shape and dtype."""
    with torch.device("meta"):
        bare = case.build().state_dict()
    real = case.build().state_dict()
    demand(bare.keys() == real.keys(), "__init__", f"on meta its state differs by {bare.keys() ^ real.keys()}")
    for name, tensor in bare.items():
        demand(tensor.is_meta, name, f"built on the meta device it is on {tensor.device}")
        wanted = (real[name].shape, real[name].dtype)
        demand(
            (tensor.shape, tensor.dtype) == wanted, name, f"on meta it is {tensor.shape}, {tensor.dtype}, not {wanted}"
        )


@check(*PARTS)
def built_on_meta_and_filled_it_works(case: PartCase) -> None:
    """A part built on meta and then given weights gives the same bits: nothing it derives was lost there."""
    with torch.device("meta"):
        bare = case.build()
    bare.to_empty(device="cpu").load_state_dict(case.part.state_dict())
    _compare(case, bare.eval(), "built on meta and filled")


@torch.no_grad()
def _compare(case: PartCase, other: Any, how: str) -> None:
    wrong = same(case.outputs(), case.outputs(other))
    demand(not wrong, wrong, f"{how}, it has other bits")


@check(*PARTS)
def it_runs_on_the_meta_device(case: PartCase) -> None:
    """On the meta device it gives outputs of the shapes it gives elsewhere, where it can be run there at all."""
    try:
        part = duplicate(case.part).to("meta")
        found = case.drive(part, map_tensors(case.inputs(case.part), lambda x: x.to("meta")))
    except (RuntimeError, TypeError, ContractError) as error:
        # Torch and the attention kernels name the device where it is what stops them; anything else is the part's fault.
        if "meta" not in str(error).lower():
            raise
        raise Inapplicable(f"it cannot run there: {str(error).splitlines()[0]}") from None
    real = case.outputs()
    for name, x in found.items():
        wrong = x.shape != real[name].shape and not re.search("tokens", name)
        demand(not wrong, name, f"on meta its shape is {tuple(x.shape)}, elsewhere {tuple(real[name].shape)}")


@check(*PARTS)
def state_round_trips(case: PartCase) -> None:
    """Its state, loaded into a part built under another seed, gives the same bits."""
    other = case.build(9)
    other.load_state_dict(case.part.state_dict())
    _compare(case, other.eval(), "with its state in another part")


@check(*PARTS)
def state_saves_without_pickle(case: PartCase) -> None:
    """Its state is a flat mapping of names to tensors that safetensors writes and reads to the same bits."""
    state = case.part.state_dict()
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    demand(not odd, odd[0] if odd else "", "it is no tensor, so saving it would need pickle")
    stored = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    again = safetensors.torch.load(safetensors.torch.save(stored))
    other = case.build(9)
    other.load_state_dict(again)
    _compare(case, other.eval(), "saved and loaded")


def _held(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _held(inner, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple | set):
        for i, inner in enumerate(value):
            yield from _held(inner, f"{place}[{i}]")


def strays(part: nn.Module) -> list[str]:
    """Tensors that modules hold outside parameters and buffers, and so neither move nor are saved with them."""
    known = {id(t) for t in (*part.parameters(), *part.buffers())}
    inside = ("_parameters", "_buffers", "_modules")
    return [
        at
        for path, module in part.named_modules()
        for name, value in vars(module).items()
        if name not in inside
        for at, tensor in _held(value, f"{path}.{name}".strip("."))
        if id(tensor) not in known and tensor.numel() and not tensor.is_meta
    ]


@check(*PARTS)
def tensors_are_parameters_or_buffers(case: PartCase) -> None:
    """Every tensor it keeps, before and after running and training, is a parameter or a buffer."""
    part = case.lively().train()
    for mode in (True, False):
        found = strays(part.train(mode))
        demand(
            not found, found[0] if found else "", "it is a tensor outside parameters and buffers; use `register_buffer`"
        )
        case.drive(part, case.inputs(part))
        part.after_step()


@check(*PARTS)
@torch.no_grad()
def it_is_deterministic(case: PartCase) -> None:
    """Asked twice, it gives the same bits."""
    wrong = same(case.outputs(), case.outputs())
    demand(not wrong, wrong, "asked twice, it gives other bits")


@check(*PARTS)
@torch.no_grad()
def it_remembers_nothing_between_calls(case: PartCase) -> None:
    """What it gave before changes nothing of what it gives, and running it in evaluation mode changes no weight or buffer."""
    part = duplicate(case.part)
    first = case.outputs(part)
    state = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    case.outputs(part, case.inputs(part, seed=1))
    wrong = same(first, case.outputs(part))
    demand(not wrong, wrong, "it depends on what was asked before: a part keeps no state between calls")
    moved = [name for name, tensor in part.state_dict().items() if not torch.equal(tensor, state[name])]
    demand(not moved, moved[0] if moved else "", "running it in evaluation mode changes it")


@check(*PARTS)
def trained_state_is_all_there_is(case: PartCase) -> None:
    """After a pass in training mode and `after_step`, its state loaded into a new part gives the same bits."""
    part = case.lively().train()
    case.drive(part, case.inputs(part))
    part.after_step()
    other = case.build(9)
    other.load_state_dict(part.state_dict())
    with torch.no_grad():
        wrong = same(case.outputs(part.eval()), case.outputs(other.eval()))
    demand(not wrong, wrong, "something it learned is in neither parameters nor buffers")


@check(*PARTS)
@torch.no_grad()
def a_deep_copy_is_independent(case: PartCase) -> None:
    """A deep copy gives the same bits, and changing its weights does not change the original's."""
    before = case.outputs()

    def spoil(part: Any) -> None:
        for tensor in (*part.parameters(), *part.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.5)

    _compare(case, duplicate(case.part), "deeply copied")
    outputs_after(case, spoil)
    wrong = same(before, case.outputs())
    demand(not wrong, wrong, "changing the weights of a deep copy changes it")


@check(*PARTS)
def it_moves_as_a_whole(case: PartCase) -> None:
    """``to`` moves every tensor it keeps."""
    part = duplicate(case.part).to("meta")
    left = [n for n, t in (*part.named_parameters(), *part.named_buffers()) if not t.is_meta]
    demand(not left, left[0] if left else "", "it stays behind when the part is moved to another device")


@check(*PARTS)
def bf16_is_taken_and_given(case: PartCase) -> None:
    """In bf16 a part takes and gives bf16 (contents and losses stay float32), finite and near what float32 gives."""
    half = duplicate(case.part).to(torch.bfloat16)
    with torch.no_grad():
        exact, found = case.outputs(), case.drive(half, case.halved(case.inputs(case.part)))
    for name, x in found.items():
        if not x.is_floating_point():
            continue
        allowed = _allowed(case.entry.kind, name)
        demand(x.dtype in allowed, name, f"in bf16 it is {x.dtype}, not {' or '.join(map(str, allowed))}")
        demand(x.isfinite().all(), name, "in bf16 it is not finite")
        if not _chaotic(case, exact, found) and x.numel() and x.shape == exact[name].shape:
            wanted = exact[name].float()
            off = (x.float() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt().clamp_min(0.1)
            demand(off < 0.15, name, f"in bf16 it is {off:.0%} away from what float32 gives")


def _allowed(kind: str, name: str) -> tuple[torch.dtype, ...]:
    if name == "loss" or name.startswith(("loss ", "decoded")):
        return (torch.float32,) if name == "loss" else (torch.float32, torch.bfloat16)
    return (torch.bfloat16, torch.float32) if kind in ("encoder", "tokenizer") else (torch.bfloat16,)


def _chaotic(case: PartCase, exact: dict[str, Tensor], found: dict[str, Tensor]) -> bool:
    """True where rounding may choose another code or expert, after which nothing is near."""
    codes = [n for n, x in exact.items() if n.startswith("tokens") and not x.is_floating_point()]
    return bool(getattr(case.part, "routes", False)) or any(not torch.equal(exact[n], found[n]) for n in codes)


@check(*PARTS)
@torch.no_grad()
def bf16_autocast_runs(case: PartCase) -> None:
    """Under bf16 autocast it runs, and all it gives is finite."""
    with torch.autocast("cpu", torch.bfloat16):
        found = case.outputs()
    wrong = [n for n, x in found.items() if x.is_floating_point() and not x.isfinite().all()]
    demand(not wrong, wrong[0] if wrong else "", "under autocast it is not finite")


@check(*PARTS, slow=True, each=False)
@torch.no_grad()
def it_compiles(case: PartCase) -> None:
    """``torch.compile`` traces it, graph breaks allowed, and what is traced gives the same."""
    part, inputs = duplicate(case.part), case.inputs(case.part)
    inputs = inputs[:1] if isinstance(inputs, list) else inputs  # every other size is traced anew
    wanted = case.outputs(inputs=inputs)
    torch._dynamo.reset()
    try:
        found = torch.compile(lambda given: case.drive(part, given), backend="eager", dynamic=False)(inputs)
    finally:
        torch._dynamo.reset()
    for name, x in wanted.items():
        close = torch.allclose(x.float(), found[name].float(), atol=1e-5, rtol=1e-5)
        demand(close, name, "compiled, it gives something else")
