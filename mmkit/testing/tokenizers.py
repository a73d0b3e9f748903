"""Checks of tokenizers: ports measured, encode and decode, any mix of sizes, what reconstruction trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkit.errors import ContractError, DataError
from mmkit.testing.cases import TokenizerCase, duplicate, refusal
from mmkit.testing.catalogue import Inapplicable, check, demand
from mmkit.testing.contents import SIZES, draw
from mmkit.testing.surroundings import same


def _tokens(case: TokenizerCase, seed: int = 0) -> list[Tensor]:
    with torch.no_grad():
        return case.part.encode(case.inputs(case.part, seed))


@check("tokenizer")
def the_tokens_port_is_declared(case: TokenizerCase) -> None:
    """`port` names a registered modality, and codes with the size of the book or latents with a width."""
    port = case.part.port
    demand(port.space in ("codes", "latents"), "port", f"its space is {port.space}")
    demand(port.modality in case.registry.names("modality"), "port", f"no modality is named {port.modality!r}")
    number = port.codebook_size if port.space == "codes" else port.width
    demand(isinstance(number, int) and number > 0, "port", f"it does not say how many {port.space} there are: {port}")


@check("tokenizer")
def tokens_have_their_dtype(case: TokenizerCase) -> None:
    """Codes are int64, latents float32 and finite."""
    wanted = torch.int64 if case.part.port.space == "codes" else torch.float32
    for i, x in enumerate(_tokens(case)):
        demand(x.dtype == wanted, f"tokens of content {i}", f"they are {x.dtype}, not {wanted}")
        demand(not x.is_floating_point() or x.isfinite().all(), f"tokens of content {i}", "they are not finite")


@check("tokenizer")
def the_codebook_size_or_width_is_measured(case: TokenizerCase) -> None:
    """Codes lie in ``0 .. codebook_size``, latents are `port.width` wide."""
    port = case.part.port
    for i, x in enumerate(x for seed in range(3) for x in _tokens(case, seed)):
        if port.space == "latents":
            demand(x.shape[-1] == port.width, "port", f"latents are {x.shape[-1]} wide, not {port.width}")
        elif x.numel():
            inside = int(x.min()) >= 0 and int(x.max()) < port.codebook_size
            demand(inside, "port", f"codes of content {i} run to {int(x.max())}, and the book has {port.codebook_size}")


@check("tokenizer")
@torch.no_grad()
def every_code_can_be_decoded(case: TokenizerCase) -> None:
    """The first and the last code of the book, which a model may write, decode."""
    port = case.part.port
    if port.space != "codes":
        raise Inapplicable("it gives latents")
    shape = _tokens(case)[0].shape
    for code in (0, port.codebook_size - 1):
        demand(len(case.part.decode([torch.full(shape, code)])) == 1, "decode", f"code {code} gives nothing")


@check("tokenizer")
def the_tokens_grid_is_measured(case: TokenizerCase) -> None:
    """`grid` says beforehand how many tokens a content of each size gives."""
    if case.open(case.part):
        demand(all(x.ndim >= 1 for x in _tokens(case)), "encode", "codes of open length are `[n]`")
        raise Inapplicable("its contents have an open length, so it has no grid")
    modality = case.registry.find("modality", case.part.port.modality).load()()
    for content, x in zip(case.inputs(case.part), _tokens(case), strict=True):
        grid = tuple(case.part.grid(modality.size(content)))
        found = tuple(x.shape[: len(grid)])
        demand(found == grid, "grid", f"{modality.size(content)} gives {found}, and `grid` says {grid}")
        axes = case.part.port.axes
        demand(len(grid) == axes, "port", f"the grid {grid} has {len(grid)} axes, and the port says {axes}")


@check("tokenizer")
@torch.no_grad()
def decoding_gives_canonical_contents(case: TokenizerCase) -> None:
    """What `decode` gives is in its modality's canonical form, and of the size that was encoded."""
    modality = case.registry.find("modality", case.part.port.modality).load()()
    inputs = case.inputs(case.part)
    for content, back in zip(inputs, case.part.decode(_tokens(case)), strict=True):
        again = modality.coerce(back)
        demand(type(again) is type(content), "decode", f"it gives {type(again).__name__}, not {type(content).__name__}")
        sizes = modality.size(content), modality.size(again)
        demand(sizes[0] == sizes[1], "decode", f"{sizes[0]} comes back as {sizes[1]}")


@check("tokenizer")
@torch.no_grad()
def mixed_contents_give_what_each_gives_alone(case: TokenizerCase) -> None:
    """A content's tokens do not depend on what stands beside it; nor does what tokens decode to."""
    together = _tokens(case)
    back = case.part.decode(together)
    for i, content in enumerate(case.inputs(case.part)):
        (alone,) = case.part.encode([content])
        near = alone.shape == together[i].shape and torch.allclose(alone, together[i], atol=1e-4, rtol=1e-4)
        demand(near, f"tokens of content {i}", "they depend on the other contents of the batch")
        (decoded,) = case.part.decode([together[i]])
        demand(_alike(decoded, back[i]), f"decoded content {i}", "it depends on the other contents of the batch")


def _alike(a: Any, b: Any) -> bool:
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4) if isinstance(a, Tensor) else a == b


@check("tokenizer")
def no_content_gives_no_tokens(case: TokenizerCase) -> None:
    """Empty batches give empty lists, both ways."""
    demand(list(case.part.encode([])) == [], "encode", "nothing in gives something out")
    demand(list(case.part.decode([])) == [], "decode", "nothing in gives something out")


@check("tokenizer")
@torch.no_grad()
def it_encodes_the_content(case: TokenizerCase) -> None:
    """Other contents give other tokens."""
    named = [{str(i): x for i, x in enumerate(_tokens(case, seed))} for seed in (0, 1)]
    demand(same(*named), "encode", "its tokens do not depend on the content")


@check("tokenizer")
@torch.no_grad()
def codes_have_vectors_or_none(case: TokenizerCase) -> None:
    """`embed` gives the vectors of `port.width` behind codes of any shape; without a width it raises `ContractError`."""
    port = case.part.port
    if port.space != "codes":
        raise Inapplicable("it gives latents")
    codes = torch.zeros(2, 3, dtype=torch.long)
    if not port.width:
        demand(isinstance(refusal(lambda: case.part.embed(codes)), ContractError), "embed", "its codes have no vectors")
        return
    found = tuple(case.part.embed(codes).shape)
    demand(found == (2, 3, port.width), "embed", f"codes (2, 3) give {found}, not {(2, 3, port.width)}")


@check("tokenizer")
@torch.no_grad()
def any_content_size_is_taken_or_refused(case: TokenizerCase) -> None:
    """`grid` and `encode` agree on which sizes can be taken, and refuse the others with `ContractError`."""
    modality = case.part.port.modality
    if modality not in SIZES:
        raise Inapplicable("its contents have no size")
    frames = (3,) if modality == "video" else ()
    for size in ((*frames, 1, 1), (*frames, 7, 13), (*frames, 40, 24), (*frames, 17, 16)):
        refused = isinstance(refusal(lambda size=size: case.part.grid(size)), ContractError)
        also = isinstance(refusal(lambda size=size: case.part.encode([draw(modality, size, 0)])), ContractError)
        demand(
            refused == also, "grid", f"{size}: `grid` {'refuses' if refused else 'takes'} it, `encode` does not agree"
        )


@check("tokenizer")
def levels_add_up_or_are_refused(case: TokenizerCase) -> None:
    """`levels` sum to the grid's tokens, or raise `ContractError` where there are none."""
    grid = tuple(_tokens(case)[0].shape)[: 1 if case.open(case.part) else None]
    try:
        levels = case.part.levels(grid)
    except ContractError as error:
        raise Inapplicable(error.problem.fact) from None
    count = 1
    for n in grid:
        count *= n
    demand(sum(levels) == count, "levels", f"{levels} sum to {sum(levels)}, and the grid has {count} tokens")


@check("tokenizer")
def what_is_fitted_is_kept_in_its_state(case: TokenizerCase) -> None:
    """`fit` makes it `fitted`, keeps what it learned in buffers, and so a loaded one is fitted, too."""
    part = case.build()
    case.ready(part)
    part.fit(case.inputs(part) * 20)
    demand(part.fitted, "fit", "it was fitted, and `fitted` is still false")
    other = case.build(9)
    other.load_state_dict(part.state_dict())
    demand(other.fitted, "fitted", "with the state of a fitted one it is not fitted")


@check("tokenizer")
def latents_are_in_the_scale_of_noise(case: TokenizerCase) -> None:
    """Once fitted, latents stay within a few units of zero, as a diffusion head expects."""
    if case.part.port.space != "latents":
        raise Inapplicable("it gives codes")
    x = torch.cat([x.flatten() for x in _tokens(case)])
    demand(
        0.05 < x.std() < 20 and x.mean().abs() < 10, "encode", f"mean {x.mean():.2f}, standard deviation {x.std():.2f}"
    )


@check("tokenizer")
def keeping_its_tokens_is_safe(case: TokenizerCase) -> None:
    """A `keepable` tokenizer gives the same tokens whatever torch's generator says and whatever it encoded before; a
    `separable` one also whatever stands beside a content, to the last bit."""
    if not case.cls.keepable:
        raise Inapplicable("it does not say that it is keepable")
    torch_state = torch.random.get_rng_state()
    first = _tokens(case)
    _tokens(case, 1)
    torch.random.set_rng_state(torch_state)
    demand(
        all(map(torch.equal, first, _tokens(case))), "encode", "it is keepable, and gives other tokens the second time"
    )
    if case.cls.separable:
        with torch.no_grad():
            alone = [case.part.encode([content])[0] for content in case.inputs(case.part)]
        demand(all(map(torch.equal, first, alone)), "encode", "it is separable, and what stands beside changes bits")


@check("tokenizer")
def reconstruction_is_as_its_port_says(case: TokenizerCase) -> None:
    """`reconstruct` gives contents of the same shapes with gradients and scalar losses, or says that nothing can be trained."""
    part = case.lively().train()
    inputs = case.inputs(part)
    if not part.port.trained_by_reconstruction:
        error = refusal(lambda: part.reconstruct(inputs))
        demand(isinstance(error, ContractError), "reconstruct", "its port says that reconstruction does not train it")
        return
    found = part.reconstruct(inputs)
    for i, (content, back) in enumerate(zip(inputs, found.contents, strict=True)):
        demand(back.shape == content.shape, "reconstruct", f"content {i} comes back as {tuple(back.shape)}")
        demand(back.requires_grad, "reconstruct", f"content {i} has no gradient")
    scalars = all(loss.ndim == 0 and loss.isfinite() for loss in found.losses.values())
    demand(scalars, "reconstruct", "its losses are finite scalars, already weighted")
    plain = all(isinstance(figure, float) for figure in found.figures.values())
    demand(plain, "reconstruct", "its figures are plain numbers")


@check("tokenizer")
def reconstruction_reaches_every_parameter(case: TokenizerCase) -> None:
    """One reconstruction gives every trainable parameter a gradient."""
    part = case.lively().train()
    if not part.port.trained_by_reconstruction:
        raise Inapplicable("reconstruction does not train it")
    found = part.reconstruct(case.inputs(part))
    pixels = sum((a - b).abs().mean() for a, b in zip(found.contents, case.inputs(part), strict=True))
    (pixels + sum(found.losses.values())).backward()
    left = [n for n, p in part.named_parameters() if p.requires_grad and p.grad is None]
    demand(not left, left[0] if left else "", "no gradient of reconstruction reaches it")


@check("tokenizer", slow=True, each=False)
def reconstruction_learns(case: TokenizerCase) -> None:
    """Thirty steps of reconstruction on one batch bring its error down."""
    part = case.lively().train()
    if not part.port.trained_by_reconstruction:
        raise Inapplicable("reconstruction does not train it")
    inputs, errors = case.inputs(part), []
    optimizer = torch.optim.Adam([p for p in part.parameters() if p.requires_grad], lr=5e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(30):
            found = part.reconstruct(inputs)
            pixels = sum((a - b).abs().mean() for a, b in zip(found.contents, inputs, strict=True)) / len(inputs)
            optimizer.zero_grad()
            (pixels + sum(found.losses.values())).backward()
            optimizer.step()
            errors.append(float(pixels.detach()))
    first, last = errors[0], sum(errors[-5:]) / 5
    demand(
        last < 0.8 * first, "reconstruct", f"the mean error of a pixel goes from {first:.3f} to {last:.3f} in 30 steps"
    )


@check("tokenizer")
def unfitted_it_is_refused(case: TokenizerCase) -> None:
    """Before `fit`, a tokenizer that needs it says so instead of encoding, or encodes with a valid default."""
    part = duplicate(case.build())
    if part.fitted:
        raise Inapplicable("it needs no fitting")
    error = refusal(lambda: part.encode(case.inputs(part)))
    demand(error is None or isinstance(error, ContractError | DataError), "encode", f"unfitted it raises {error}")
