"""Learned queries in the sequence, and a diffusion transformer behind them (MetaQuery, 2504.06256; BLIP3-o, 2505.09568).

Times and velocities as in head `flow`: ``x_t = (1 - t) x0 + t noise``, and the velocity is ``noise - x0``.

Shape suffixes: N spans, Q queries of a span, S target tokens of one call, T queries of one call, C latent channels, D
backbone width, E width of the condition, B spans of one grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from mmkit.contracts.head import Head
from mmkit.contracts.options import Count, Guidance, Positive, Spec, part
from mmkit.contracts.port import Needs, TargetPort
from mmkit.contracts.sampler import Prediction, Sampler, State
from mmkit.contracts.values import Feed, Prepared, Request, Targets, TokenLoss
from mmkit.nn.guidance import FULL, acts, combine
from mmkit.nn.latents import latent_width, spread
from mmkit.nn.process import StraightProcess, shifted
from mmkit.nn.projection import hidden_layers
from mmkit_diffusers.decoders import DECODERS, LatentDecoder
from mmkit_diffusers.wrapped import Described, Value, published

Grid = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Noised(Prepared):
    """What the decoder must undo: latents ``[S, C]`` of all spans at times ``[N]``, and the spans' grids."""

    x_SC: Tensor
    t_N: Tensor
    grids: tuple[Grid, ...]


@dataclass(frozen=True, eq=False)
class Drawing:
    """One span on its way from noise to latents: `walk` is its sampler's state, `read` tells whether the queries were."""

    request: Request
    walk: State
    read: bool = False

    @property
    def done(self) -> bool:
        """True once no noise is left."""
        return self.walk.done

    @property
    def progress(self) -> float:
        """1 minus the noise level."""
        return 1 - self.walk.level.time


class QueryDecoder(Head[Drawing]):
    """Learned queries stand where the image would, and a transformer of diffusers draws it from what becomes of them.

    The backbone reads the queries once. Their hidden states, projected, are what the decoder attends to while it turns noise
    into latents, in as many calls of its own as there are steps; under guidance it is asked once for each branch, in one batch.
    What follows the span sees the queries, or, with ``noised: hidden``, the image. The loss is the mean over channels of the
    squared error of the velocity, as of head `flow`; `Config` names the decoder, random unless `weights` names a checkpoint
    of it. Queries and projection then stay as they were drawn.
    """

    examples = (
        {
            "decoder": {
                "_class_name": "SanaTransformer2DModel", "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
                "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32,
                "sample_size": 4, "interpolation_scale": 1,
            },
            "queries": 3, "steps": 3,
        },
        {
            "decoder": {
                "_class_name": "SD3Transformer2DModel", "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
                "caption_projection_dim": 32, "pooled_projection_dim": 8, "patch_size": 1, "pos_embed_max_size": 32,
                "sample_size": 4,
            },
            "queries": 2, "depth": 1, "steps": 3, "weighting": "logit_normal", "shift": 3.0,
        },
    )  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            decoder: the folder of a published transformer, whose ``config.json`` is read, or the same as a mapping, with
                ``_class_name`` for the class: SanaTransformer2DModel, SD3Transformer2DModel or Lumina2Transformer2DModel.
                Channels, and what it says nothing about of the condition's width, follow from the model around it.
            queries: how many stand in the sequence for one image.
            depth: linear layers between hidden states and decoder.
            dim: width between those layers; the backbone's where not given.
            weighting: density of training times before the shift: ``uniform``, or ``logit_normal`` (SD3).
            logit_mean, logit_std: of the logit-normal density; a positive mean favours noise.
            shift: moves times towards noise, in training and in sampling, for larger images: ``shift * t / (1 + (shift - 1) * t)``.
            sampler: how noise becomes latents: ``euler``, ``heun``, or another that is installed.
            steps: steps of sampling.
            guidance: classifier-free guidance on velocities; branches differ in what the queries have seen.
        """

        decoder: str | dict[str, Value]
        queries: Count = 64
        depth: Count = 2
        dim: Count | None = None
        weighting: Literal["uniform", "logit_normal"] = "uniform"
        logit_mean: float = 0.0
        logit_std: Positive = 1.0
        shift: Positive = 1.0
        sampler: Spec = part("sampler", default="euler")
        steps: Count = 25
        guidance: Guidance | None = None

    needs = Needs(spaces=frozenset({"latents"}), attends=("causal", "block", "full"))
    combines = True

    def __init__(self, config: Config, targets: Sequence[TargetPort], marks: int, dim: int) -> None:
        """Raises `ContractError` on streams without latents, of open length or of different widths, on a decoder that
        diffusers does not build, or not for these latents, and on a number of steps that the sampler cannot take."""
        super().__init__(config, targets, marks, dim)
        assert marks == 0, "marks are codes, and this head has none"
        self.config = config
        self.guidance = config.guidance
        self.sampler: Sampler[Any] = config.sampler.build(StraightProcess(config.shift))
        self.sampler.check(config.steps)
        self.channels = latent_width(targets)
        described = Described.read(config.decoder, tuple(DECODERS), "decoder")
        self.decoder = LatentDecoder(described, self.channels, dim, config.queries)
        self.queries_QD = nn.Parameter(nn.init.normal_(torch.empty(config.queries, dim), std=0.02))
        width = config.dim or dim
        self.projection = nn.Sequential(
            hidden_layers(dim, width, config.depth - 1),
            nn.Linear(width if config.depth > 1 else dim, self.decoder.width),
        )

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the decoder's checkpoint under this part's names; what stands before it stays as it is.

        Raises `CheckpointError` with the names that are missing, and those that are not the decoder's.
        """
        model = self.decoder.model
        found = {f"decoder.model.{n}": x for n, x in published(model, tensors, type(model).__name__).items()}
        return {**self.state_dict(), **found}

    def grid(self, grid: Grid) -> Grid:
        """The queries, in a row. Raises `ContractError` on latents that the decoder cannot draw."""
        self.decoder.check(grid)
        return (self.config.queries,)

    def prepare(self, targets: Targets) -> Noised:
        """Noises every span at a time of its own; the backbone sees the queries. Level: the time."""
        device = targets.tokens.device
        drawn = [self._draw(n, g) for n, g in zip(targets.lengths, targets.generators, strict=True)]
        t_N = torch.tensor([t for t, _ in drawn]).to(device)
        noise_SC = torch.cat([torch.zeros(0, self.channels), *(noise for _, noise in drawn)]).to(device)
        level_S = spread(t_N, targets.lengths)
        clean_SC = targets.tokens.float()
        x_SC = (1 - level_S[:, None]) * clean_SC + level_S[:, None] * noise_SC
        feed = Feed(None, x_SD=self.queries_QD.repeat(len(drawn), 1))
        return Noised(
            feed, noise_SC - clean_SC, torch.ones_like(level_S), level_S, x_SC=x_SC, t_N=t_N, grids=targets.grids
        )

    def _draw(self, count: int, generator: Generator) -> tuple[float, Tensor]:
        """A time, and noise ``[count, C]``."""
        if self.config.weighting == "uniform":
            t = torch.rand((), generator=generator)
        else:
            t = torch.sigmoid(self.config.logit_mean + self.config.logit_std * torch.randn((), generator=generator))
        return shifted(t, self.config.shift).item(), torch.randn(count, self.channels, generator=generator)

    def predict(self, hidden_SD: Tensor) -> Tensor:
        """Hidden states of queries to what the decoder attends to: ``[T, D]`` to ``[T, E]``."""
        return self.projection(hidden_SD)

    def loss(self, hidden_SD: Tensor, prepared: Noised) -> TokenLoss:
        """The mean over channels of the squared error of the velocity at each latent, in float32."""
        condition_NQE = self.predict(hidden_SD).unflatten(0, (len(prepared.grids), self.config.queries))
        error_SC = self._velocities(prepared, condition_NQE).float() - prepared.target
        return TokenLoss(error_SC.square().mean(dim=-1), prepared.weight_S, prepared.level_S)

    def _velocities(self, noised: Noised, condition_NQE: Tensor) -> Tensor:
        """Velocities ``[S, C]`` of spans end to end; those of one grid are decoded together."""
        members: dict[Grid, list[int]] = {}
        for number, grid in enumerate(noised.grids):
            members.setdefault(self.decoder.check(grid), []).append(number)
        spans = noised.x_SC.split([math.prod(grid) for grid in noised.grids])
        # Without a span there is nothing to decode, and still something to go backward from.
        found = {-1: condition_NQE.sum() * noised.x_SC[:0]}
        for grid, numbers in members.items():
            x_BHWC = torch.stack([spans[i].unflatten(0, grid) for i in numbers])
            velocity_BHWC = self.decoder(x_BHWC, noised.t_N[numbers], condition_NQE[numbers])
            found.update(zip(numbers, velocity_BHWC.flatten(1, 2), strict=True))
        return torch.cat([found[i] for i in range(-1, len(spans))])

    def begin(self, request: Request) -> Drawing:
        """Noise at time 1, drawn on the CPU."""
        noise_SC = torch.randn(request.count, self.channels, generator=request.generator).to(request.device)
        steps = request.sampling.steps or self.config.steps
        return Drawing(request, self.sampler.begin(noise_SC, steps, request.generator))

    def feed(self, state: Drawing) -> Feed | None:
        """The queries, once: what became of them is all that the decoder needs."""
        return None if state.read else Feed(None, x_SD=self.queries_QD)

    def step(self, state: Drawing, prediction: Mapping[str, Tensor]) -> Drawing:
        """One evaluation of the velocity that the branches' conditions ``[Q, E]`` give together, as the sampler goes on from it."""
        walk = state.walk
        velocity = Prediction(walk.x_SC, walk.level, "velocity", self.velocity(state, prediction))
        return replace(state, walk=self.sampler.step(walk, velocity), read=True)

    def velocity(self, state: Drawing, prediction: Mapping[str, Tensor]) -> Tensor:
        """The velocity ``[S, C]`` in float32 where a span stands, guided where guidance acts at that time."""
        names = list(prediction) if len(prediction) > 1 and acts(self.guidance, state.progress) else [FULL]
        grid, x_SC = self.decoder.check(state.request.grid), state.walk.x_SC
        x_BHWC = x_SC.unflatten(0, grid).expand(len(names), -1, -1, -1)
        t_B = x_SC.new_full((len(names),), state.walk.level.time)
        velocity_BHWC = self.decoder(x_BHWC, t_B, torch.stack([prediction[name] for name in names])).float()
        found = dict(zip(names, velocity_BHWC.flatten(1, 2), strict=True))
        if len(names) == 1:
            return found[FULL]
        return combine(self.guidance, found, state.progress, state.request.sampling.guidance_scale)

    def finish(self, state: Drawing) -> Tensor:
        """Latents ``[*grid, C]`` in the request's dtype."""
        return state.walk.x_SC.reshape(*state.request.grid, self.channels).to(state.request.dtype)
