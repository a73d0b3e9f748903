"""A consistency model for every token: from noise of any level to clean latents in one evaluation of a small network.

The backbone reads a span with blanks. Its state at a blank is the condition z of a network that draws the token there, where
MAR (Li et al. 2024, arXiv 2406.11838) has a diffusion model of a hundred steps. With x_t = x + t noise, and s the level above t:

    f(x_t, t, z) = skip(t) x_t + out(t) F(x_t, t, z),  f(x, LEAST, z) = x         (Song et al. 2023, arXiv 2303.01469)
    loss = (sqrt(mean (f(x_s, s, z) - f(x_t, t, z))^2 + HUBER^2) - HUBER) / (s - t)   (Song & Dhariwal 2023, 2310.14189)

x and noise are the same on both sides, and f(x_t, t, z) has no gradient.
Shape suffixes: S tokens of one call, R draws of noise for each, C latent channels, D backbone width, W width of the network.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmkit.contracts.head import Head
from mmkit.contracts.options import Count, NonNegative, Positive
from mmkit.contracts.port import Needs
from mmkit.contracts.values import Feed, Prepared, Request, TokenLoss
from mmkit.nn.latents import latent_output, latent_width
from mmkit.nn.mlp import Mlp
from mmkit.nn.timestep import TimestepEmbedding

LEAST, MOST, RHO, HUBER = 0.002, 80.0, 7.0, 0.00054


def noise_levels(count):
    """`count` levels from LEAST to MOST, denser where there is little noise (Karras et al. 2022, equation 5)."""
    first, last = LEAST ** (1 / RHO), MOST ** (1 / RHO)
    return (first + torch.linspace(0, 1, count, dtype=torch.float64) * (last - first)).pow(RHO).float()


def chances(levels):
    """Of each pair of neighbours to be trained: that a level whose logarithm is normal (-1.1, 2.0) falls between them."""
    between = torch.erf((levels.double().log() + 1.1) / (2.0 * math.sqrt(2))).diff()
    return between / between.sum()


@dataclass(frozen=True, eq=False)
class ConsistencyState:
    """One span after `index` of its rounds: the first `known` tokens of ``order_S`` stand in ``x_SC``."""

    request: Request
    x_SC: Tensor
    order_S: Tensor
    rounds: int
    index: int = 0

    @property
    def known(self):
        """At least one token more each round, and more of them the later it is (the cosine of MaskGIT and MAR)."""
        return max(self.index, math.ceil(len(self.order_S) * (1 - math.cos(math.pi / 2 * self.progress)) - 1e-6))

    @property
    def progress(self):
        return self.index / self.rounds

    @property
    def done(self):
        return self.index == self.rounds


class Consistency(Head[ConsistencyState]):
    """Latents in random order, each in one evaluation (or a few) of a network, by consistency training from scratch."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """
        Options:
            steps: rounds in which a span is drawn; the backbone runs once in each.
            evaluations: of the network, for each token: 1, or a few.
            temperature: what the noise is scaled by when a token is drawn.
            depth, width: of the network; as wide as the backbone where not given.
            deviation: standard deviation of the latents (sigma_data).
            draws: of noise, and of a level, that training tries at each token at once.
            doubling: steps of training after which it tells twice as many levels apart, from 10 up to 1280. The paper takes an
                eighth of all steps.
        """

        steps: Count = 8
        evaluations: Count = 1
        temperature: NonNegative = 1.0
        depth: Count = 3
        width: Count | None = None
        deviation: Positive = 0.5
        draws: Count = 4
        doubling: Count = 1000

    needs = Needs(spaces=frozenset({"latents"}), attends=("block", "full"))

    def __init__(self, config, targets, marks, dim):
        super().__init__(config, targets, marks, dim)
        self.config, self.channels, width = config, latent_width(targets), config.width or dim
        self.condition, self.enter = nn.Linear(dim, width), nn.Linear(self.channels, width)
        self.time = TimestepEmbedding(width, scale=1.0)
        self.blocks = nn.ModuleList(Mlp(width, width, activation="silu", bias=True) for _ in range(config.depth))
        self.leave = latent_output(width, self.channels, 1, None)
        self.blank_D = nn.Parameter(torch.randn(dim) * 0.02)
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))

    def after_step(self):
        self.taken += 1

    def prepare(self, targets):
        levels = noise_levels(1 + 10 * 2 ** min(int(self.taken) // self.config.doubling, 7))
        drawn = [self._draw(n, levels, g) for n, g in zip(targets.lengths, targets.generators, strict=True)]
        none = torch.zeros(0, dtype=torch.bool), torch.zeros(0), torch.zeros(0, self.config.draws, self.channels + 2)
        blank_S, share_S, drawn_SRX = (torch.cat(x).to(targets.tokens.device) for x in zip(none, *drawn, strict=True))
        feed = Feed(targets.tokens.masked_fill(blank_S[:, None], 0), blank_S, self.blank_D)
        clean_SRC = targets.tokens.float()[:, None].expand(-1, self.config.draws, -1)
        return Prepared(feed, torch.cat([clean_SRC, drawn_SRX], -1), blank_S.float(), share_S)

    def _draw(self, count, levels, generator):
        """Which tokens are blank ``[n]``, their share ``[n]``; and noise, a level, and the one above it: ``[n, R, C + 2]``."""
        ratio = torch.rand((), generator=generator).item()
        blanks = max(1, math.ceil(count * math.cos(math.pi / 2 * ratio)))
        blank_S = torch.randperm(count, generator=generator) < blanks
        noise_SRC = torch.randn(count, self.config.draws, self.channels, generator=generator)
        places = torch.multinomial(chances(levels), count * self.config.draws, replacement=True, generator=generator)
        pair_SR2 = torch.stack([levels[places], levels[places + 1]], -1).view(count, self.config.draws, 2)
        return blank_S, torch.full((count,), blanks / count), torch.cat([noise_SRC, pair_SR2], -1)

    def predict(self, hidden_SD):
        return self.condition(hidden_SD)

    def denoise(self, x_SRC, t_SR, z_SRW):
        """f, in float32: under autocast, what neighbouring levels differ by would be lost in its rounding."""
        deviation, dtype, t_SR1 = self.config.deviation, self.enter.weight.dtype, t_SR[..., None]
        scale_SR1 = (t_SR1**2 + deviation**2).rsqrt()
        with torch.autocast(x_SRC.device.type, enabled=False):
            time_SRW = self.time(t_SR.flatten().log() / 4).unflatten(0, t_SR.shape)
            condition_SRW = z_SRW.to(dtype) + time_SRW
            h_SRW = self.enter((scale_SR1 * x_SRC).to(dtype))
            for block in self.blocks:
                h_SRW = h_SRW + block(nn.functional.layer_norm(h_SRW, h_SRW.shape[-1:]) + condition_SRW)
            out_SRC = self.leave(h_SRW).float()
        skip_SR1 = deviation**2 / ((t_SR1 - LEAST) ** 2 + deviation**2)
        return skip_SR1 * x_SRC + (t_SR1 - LEAST) * deviation * scale_SR1 * out_SRC

    def loss(self, hidden_SD, prepared):
        clean_SRC, noise_SRC, pair_SR2 = prepared.target.split([self.channels, self.channels, 2], -1)
        (t_SR, s_SR), z_SRW = pair_SR2.unbind(-1), self.predict(hidden_SD)[:, None]
        with torch.no_grad():
            below_SRC = self.denoise(clean_SRC + t_SR[..., None] * noise_SRC, t_SR, z_SRW)
        error_SRC = self.denoise(clean_SRC + s_SR[..., None] * noise_SRC, s_SR, z_SRW) - below_SRC
        loss_SR = ((error_SRC.square().mean(-1) + HUBER**2).sqrt() - HUBER) / (s_SR - t_SR)
        return TokenLoss(loss_SR.mean(-1), prepared.weight_S, prepared.level_S)

    def begin(self, request):
        order_S = torch.randperm(request.count, generator=request.generator).to(request.device)
        rounds = min(request.sampling.steps or self.config.steps, request.count)
        return ConsistencyState(request, torch.zeros(request.count, self.channels).to(order_S.device), order_S, rounds)

    def feed(self, state):
        blank_S = state.order_S.new_ones(len(state.order_S), dtype=torch.bool)
        blank_S[state.order_S[: state.known]] = False
        return Feed(state.x_SC.to(state.request.dtype), blank_S, self.blank_D)

    def step(self, state, prediction):
        after = replace(state, index=state.index + 1)
        now_S = state.order_S[state.known : after.known]
        return replace(after, x_SC=state.x_SC.index_copy(0, now_S, self._sample(prediction[now_S], state.request)))

    def _sample(self, z_SW, request):
        """Noise of the highest level, evaluate; noise to a lower level, evaluate (Song et al. 2023, algorithm 1)."""
        asked = request.sampling.temperature
        temperature = self.config.temperature if asked is None else asked
        x_SC = torch.zeros(len(z_SW), self.channels, device=z_SW.device)
        for t in noise_levels(self.config.evaluations + 1).flip(0)[:-1].tolist():
            noise_SC = torch.randn(x_SC.shape, generator=request.generator).to(x_SC)
            x_SC = x_SC + temperature * math.sqrt(t**2 - LEAST**2) * noise_SC
            x_SC = self.denoise(x_SC, x_SC.new_full((len(x_SC),), t), z_SW)
        return x_SC

    def finish(self, state):
        return state.x_SC.reshape(*state.request.grid, self.channels).to(state.request.dtype)
