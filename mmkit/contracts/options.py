"""How a part declares its options, and what a recipe's section becomes. Torch-free.

A part's ``Config`` is a keyword-only frozen dataclass; options that must be given have no default. So that recipes can
be typed without importing torch, ``Config`` and all that its annotations name must come from the standard library, this
module, or torch-free dataclasses of the same file.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from annotated_types import Ge, Gt, Le

Count = Annotated[int, Ge(1)]
"""A whole number of at least 1."""
Size = Annotated[int, Ge(0)]
"""A whole number of at least 0."""
Positive = Annotated[float, Gt(0)]
"""A real number above 0."""
NonNegative = Annotated[float, Ge(0)]
"""A real number of at least 0."""
Fraction = Annotated[float, Ge(0), Le(1)]
"""A real number in [0, 1]."""


class _Loadable(Protocol):
    kind: str
    name: str
    owner: str
    version: str

    def load(self) -> type: ...


@dataclass(frozen=True)
class Spec:
    """One part as a recipe names it, typed and ready to build.

    `options` is the part's own ``Config``. `path` is its place in the recipe (``heads.paint``), which is also the prefix
    of its parameters' names and the name of the random stream its initial weights are drawn from. `weights`, `frozen`
    and `lr_scale` may stand on any part; `connector` on encoders and tokenizers.
    """

    entry: _Loadable
    options: Any
    path: str = ""
    weights: str | None = None
    frozen: bool = False
    lr_scale: float = 1.0
    connector: Spec | None = None

    @property
    def name(self) -> str:
        """The registered name, as written after ``type:``."""
        return self.entry.name

    def build(self, *args: Any) -> Any:
        """The part itself: ``Class(options, *args)``. The kind's contract says which arguments follow."""
        return self.entry.load()(self.options, *args)


def part(kind: str, default: str | dict[str, Any] | None = dataclasses.MISSING) -> Any:  # type: ignore[assignment]
    """A ``Config`` field that holds another part: written ``{type: name, ...}`` in a recipe, a `Spec` once resolved.

    `default` is the name, or the mapping, used where the recipe says nothing; None makes it optional.
    """
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata={"part": kind})
    return dataclasses.field(
        default_factory=lambda: {"type": default} if isinstance(default, str) else default, metadata={"part": kind}
    )


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022) in the convention where ``scale = 1`` means none.

    With predictions `c` (all context), `u` (context dropped) and, where `image_scale` is given, `i` (text dropped, images
    kept):

    - one scale: ``u + scale * (c - u)``
    - two scales: ``u + image_scale * (i - u) + scale * (c - i)`` (InstructPix2Pix / OmniGen)

    A code base that writes ``(1 + s) c - s u`` (Show-o, MMaDA, VAR) means ``scale = 1 + s`` here.

    Options:
        scale: strength; 1 turns guidance off.
        image_scale: strength of the image context alone, for editing.
        drop: in training, the share of samples whose context before the target is emptied.
        schedule: ``constant``, or ``linear``: from 1 at the start to `scale` at the end of the span's generation.
        interval: guidance acts only while progress through the span is inside it (0 = start, 1 = end).
        rescale: share by which the guided prediction's standard deviation is pulled back to that of `c` (Lin et al. 2023).
    """

    scale: NonNegative = 1.0
    image_scale: NonNegative | None = None
    drop: Fraction = 0.1
    schedule: Literal["constant", "linear"] = "constant"
    interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    rescale: Fraction = 0.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Choices of one call of `generate`; None keeps what the head's own options say.

    `temperature` 0 is greedy. `steps` is the number of iterations of a masked or diffusion head.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    steps: int | None = None
    guidance_scale: float | None = None
