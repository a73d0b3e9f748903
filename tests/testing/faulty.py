"""Parts with one fault each, for the kit to find; and a sound one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from mmkit.backbones.dense import Dense
from mmkit.contracts.connector import Connector
from mmkit.contracts.evaluation import Metric
from mmkit.contracts.modality import Modality
from mmkit.contracts.values import Condition
from mmkit.encoders.patch import Patch
from mmkit.errors import DataError
from mmkit.heads.ar import AR
from mmkit.heads.flow import Flow
from mmkit.heads.masked import Masked
from mmkit.samplers.euler import Euler
from mmkit.tokenizers.bytes import Bytes
from mmkit.tokenizers.pixel import Pixel


class Gate(Connector):
    """A projection whose every channel opens by itself: nothing is wrong with it."""

    takes = frozenset({"latents", "features"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            bias: whether a bias is added.
        """

        bias: bool = True

    def __init__(self, config, source, dim):
        super().__init__()
        self.port = source
        self.project = nn.Linear(source.width, 2 * dim, bias=config.bias)

    def forward(self, x, grids):
        return nn.functional.glu(self.project(x), dim=-1)


class Noisy(Gate):
    """Draws from the generator that all share."""

    def forward(self, x, grids):
        return super().forward(x, grids) + 0 * torch.rand(())


class Liar(Gate):
    """Declares a width it does not have."""

    def __init__(self, config, source, dim):
        super().__init__(config, source, dim)
        self.port = replace(source, width=source.width + 1)


class Hoarder(Gate):
    """Keeps a tensor that neither moves nor is saved with it."""

    def __init__(self, config, source, dim):
        super().__init__(config, source, dim)
        self.offset = torch.zeros(dim)

    def forward(self, x, grids):
        return super().forward(x, grids) + self.offset.to(x)


class Forgetful(Gate):
    """Gives something else each time it is asked."""

    calls = 0

    def forward(self, x, grids):
        self.calls += 1
        return super().forward(x, grids) * self.calls


class Leaky(Gate):
    """Trains although it is frozen."""

    def forward(self, x, grids):
        self.project.requires_grad_(True)
        return super().forward(x, grids)


class Wide(Gate):
    """Gives float32 whatever its weights are."""

    def forward(self, x, grids):
        return super().forward(x, grids).float()


class Stubborn(Gate):
    """Draws its initial weights from a generator of its own."""

    def __init__(self, config, source, dim):
        super().__init__(config, source, dim)
        generator = torch.Generator().manual_seed(0)
        nn.init.normal_(self.project.weight, generator=generator)


class Bossy(Gate):
    """Decides for the whole process how many threads there are."""

    def forward(self, x, grids):
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().forward(x, grids)


class Patcher(Gate):
    """Replaces a function of torch for everyone."""

    def forward(self, x, grids):
        nn.functional.glu = lambda x, dim, glu=nn.functional.glu: glu(x, dim)
        return super().forward(x, grids)


class Mixer(Gate):
    """Looks over the edge of a content."""

    def forward(self, x, grids):
        return super().forward(x, grids) + x.mean()


class Scribbler(Gate):
    """Writes into what it is given."""

    def forward(self, x, grids):
        return super().forward(x.mul_(2), grids)


class Idle(Gate):
    """Has a parameter that nothing reaches."""

    def __init__(self, config, source, dim):
        super().__init__(config, source, dim)
        self.spare = nn.Parameter(torch.zeros(dim))


class Rough(Gate):
    """Dies of an option, and says nothing about it in its docstring."""

    @dataclass
    class Config:
        """Options: none are told."""

        groups: int = 1

    def __init__(self, config, source, dim):
        super().__init__(Gate.Config(), source, dim)
        self.share = dim // config.groups


class Grabby(Gate):
    """Takes codes, so it says, and cannot read them."""

    takes = frozenset({"codes"})


class Blind(Dense):
    """Forgets the mask: every token sees the mean of all."""

    def forward(self, packed, cache=None):
        mean = packed.x_TD.mean(0, keepdim=True) if len(packed.x_TD) else 0
        return super().forward(replace(packed, x_TD=packed.x_TD + mean), cache)


class Amnesiac(Dense):
    """Has a cache and does not read it."""

    def forward(self, packed, cache=None):
        return super().forward(packed, None if cache is None else self.new_cache(cache.rows, cache.capacity))


class Careless(Dense):
    """Takes the distinct conditions for those of the first tokens."""

    def forward(self, packed, cache=None):
        if packed.condition is None:
            return super().forward(packed, cache)
        rows = packed.condition.rows_KD
        spread = nn.functional.pad(rows, (0, 0, 0, len(packed.x_TD) - len(rows)))
        return super().forward(replace(packed, condition=Condition(spread)), cache)


class Backwards(Flow):
    """Samples against the velocity it learned."""

    def step(self, state, prediction):
        return super().step(state, -prediction)


class Gambler(Masked):
    """Draws more than its generators give."""

    def prepare(self, targets):
        prepared = super().prepare(targets)
        return replace(prepared, weight_S=prepared.weight_S * (1 + torch.rand(())))


class Eager(AR):
    """Writes the end mark into the text."""

    def finish(self, state):
        return torch.tensor([*state.ids, 10_000])


class Short(Bytes):
    """Has more codes than it says."""

    def __init__(self, config):
        super().__init__(config)
        self.port = replace(self.port, codebook_size=64)


class Sociable(Pixel):
    """Says that it takes contents one after another, and lets their number change the last bits."""

    keepable = True
    separable = True

    def encode(self, contents):
        return [latents * (1 + 1e-6 * len(contents)) for latents in super().encode(contents)]


class Greyish(Pixel):
    """Gives pictures back in another size."""

    def decode(self, tokens):
        return [image[:, :-1] for image in super().decode(tokens)]


class Cropped(Patch):
    """Gives fewer features than it says."""

    def forward(self, contents):
        return [x[:-1] for x in super().forward(contents)]


class Halfway(Euler):
    """Goes half as far as it should."""

    def step(self, state, prediction):
        return replace(super().step(state, prediction), x_SC=(state.x_SC + super().step(state, prediction).x_SC) / 2)


class Boastful(Euler):
    """Promises an order it does not have."""

    order = 2


class Counting(Euler):
    """Keeps in itself what belongs in a state: the number of its last step."""

    def begin(self, noise_SC, steps, generator):
        self.steps = 0
        return super().begin(noise_SC, steps, generator)

    def step(self, state, prediction):
        self.steps += 1
        after = super().step(state, prediction)
        return replace(after, x_SC=after.x_SC * (1 + 0.01 * self.steps))


class Dice(Euler):
    """Draws from the generator that all share."""

    def step(self, state, prediction):
        after = super().step(state, prediction)
        return replace(after, x_SC=after.x_SC + 0.1 * torch.randn(after.x_SC.shape))


class Secretive(Euler):
    """Draws noise, and does not say so."""

    def step(self, state, prediction):
        after = super().step(state, prediction)
        return replace(after, x_SC=after.x_SC + 0.1 * torch.randn(after.x_SC.shape, generator=state.generator))


class Signal(Modality):
    """Sound: a modality of the package's own."""

    suffix = ".txt"

    def accepts(self, value):
        return False

    def coerce(self, value):
        if not isinstance(value, torch.Tensor):
            raise DataError("Signal", "it is no tensor")
        return value

    def size(self, content):
        return tuple(content.shape)

    def empty(self, content):
        return None

    def save(self, content, path):
        path.write_text(str(content))

    @staticmethod
    def examples(seed):
        return [torch.arange(1.0, 4.0) + seed] * 3


class Meddler(Metric):
    """Measures contents of that modality alone, and doubles them on the way."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """It has no options."""

    def __init__(self, config):
        self.config = config

    def why_not(self, records):
        return "" if self._signals(records[0]) else "no signals"

    def each(self, records, subject):
        return [{"loud": bool(self._signals(record)[0].mul_(2).sum())} for record in records]

    def _signals(self, record):
        wanted = [s for s in record.sample.segments if s.role == "target"]
        return [c for s, c in zip(wanted, record.contents, strict=True) if s.modality == "Signal"]
