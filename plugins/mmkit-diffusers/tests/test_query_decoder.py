"""`query_decoder` against the transformers it wraps, and inside a recipe."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from mmkit_diffusers.query_decoder import QueryDecoder
from torch import Tensor

import mmkit
from mmkit.checkpoint import load_part
from mmkit.compose import load, loads, spec
from mmkit.contracts.options import Sampling
from mmkit.contracts.port import Port, TargetPort
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.values import Request, Targets
from mmkit.errors import CheckpointError, ContractError
from mmkit.nn.guidance import DROPPED, FULL
from mmkit.train import train

DIM, WIDTH, QUERIES = 32, 6, 3
SANA = {
    "_class_name": "SanaTransformer2DModel", "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32, "timestep_scale": 0.5,
}  # fmt: skip
SD3 = {
    "_class_name": "SD3Transformer2DModel", "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
    "caption_projection_dim": 32, "pooled_projection_dim": 8, "patch_size": 2, "pos_embed_max_size": 8, "sample_size": 4,
    "joint_attention_dim": 20, "qk_norm": "rms_norm",
}  # fmt: skip
LUMINA = {
    "_class_name": "Lumina2Transformer2DModel", "hidden_size": 24, "num_layers": 1, "num_refiner_layers": 1,
    "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": [4, 4, 4], "axes_lens": [8, 8, 8],
    "patch_size": 1,
}  # fmt: skip
DECODERS = {"sana": SANA, "sd3": SD3, "lumina2": LUMINA}


def built(decoder: dict[str, Any] | str, **options: Any) -> QueryDecoder:
    torch.manual_seed(0)
    config = QueryDecoder.Config(
        decoder=decoder, **{"queries": QUERIES, "steps": 4, "sampler": spec("sampler", "euler"), **options}
    )
    head = QueryDecoder(config, [TargetPort("image", Port("image", "latents", width=WIDTH))], 0, DIM).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return head


def spans(*grids: tuple[int, int]) -> Targets:
    lengths = tuple(h * w for h, w in grids)
    tokens = torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(5))
    generators = tuple(torch.Generator().manual_seed(i) for i in range(len(grids)))
    return Targets(tokens, lengths, grids, ("image",) * len(grids), generators)


def theirs(head: QueryDecoder, x_CHW: Tensor, t: float, condition_QE: Tensor) -> Tensor:
    """The velocity as diffusers' own training scripts and pipelines have it."""
    model = head.decoder.model
    copy = getattr(diffusers, type(model).__name__).from_config(dict(model.config)).eval()
    copy.load_state_dict(model.state_dict())
    x, condition, time = x_CHW[None], condition_QE[None], torch.tensor([t])
    if isinstance(copy, diffusers.SanaTransformer2DModel):
        return copy(x, encoder_hidden_states=condition, timestep=1000 * time * copy.config.timestep_scale).sample[0]
    if isinstance(copy, diffusers.SD3Transformer2DModel):
        pooled = head.decoder.pool(condition.mean(1))
        return copy(x, encoder_hidden_states=condition, pooled_projections=pooled, timestep=1000 * time).sample[0]
    mask = torch.ones(condition.shape[:2], dtype=torch.bool)
    return -copy(x, timestep=1 - time, encoder_hidden_states=condition, encoder_attention_mask=mask).sample[0]


def request(grid: tuple[int, int], **sampling: Any) -> Request:
    generator = torch.Generator().manual_seed(3)
    return Request("image", grid, generator, Sampling(**sampling), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_the_velocity_is_that_of_diffusers(name: str) -> None:
    head = built(DECODERS[name])
    state, hidden = head.begin(request((4, 2))), torch.randn(QUERIES, DIM)
    condition = head.predict(hidden)
    found = head.velocity(state, {FULL: condition})
    x_CHW = state.walk.x_SC.view(4, 2, WIDTH).permute(2, 0, 1).contiguous()
    assert torch.equal(found, theirs(head, x_CHW, state.walk.level.time, condition).permute(1, 2, 0).reshape(8, WIDTH))
    assert found.std() > 0.01


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_the_loss_is_the_error_of_that_velocity(name: str) -> None:
    head, grids = built(DECODERS[name], shift=3.0), ((4, 2), (2, 2), (4, 2))
    prepared = head.prepare(spans(*grids))
    hidden = torch.randn(3 * QUERIES, DIM)
    losses = head.loss(hidden, prepared).value_S.split([8, 4, 8])
    clean = spans(*grids).tokens.split([8, 4, 8])
    for i, (h, w) in enumerate(grids):
        generator = torch.Generator().manual_seed(i)
        t = torch.rand((), generator=generator).item()
        t, noise = 3 * t / (1 + 2 * t), torch.randn(h * w, WIDTH, generator=generator)
        x = ((1 - t) * clean[i] + t * noise).view(h, w, WIDTH).permute(2, 0, 1)
        velocity = theirs(head, x, t, head.predict(hidden[i * QUERIES : (i + 1) * QUERIES]))
        error = velocity.permute(1, 2, 0).reshape(h * w, WIDTH) - (noise - clean[i])
        # Spans of one size are decoded in one batch, which sums in another order.
        torch.testing.assert_close(losses[i], error.square().mean(-1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_guidance_acts_on_velocities() -> None:
    head = built(SANA, guidance={"scale": 3.0})
    head.guidance = mmkit.contracts.options.Guidance(scale=3.0, interval=(0.0, 0.5))
    state = head.begin(request((4, 4)))
    conditions = {FULL: head.predict(torch.randn(QUERIES, DIM)), DROPPED: head.predict(torch.randn(QUERIES, DIM))}
    alone = {name: head.velocity(state, {FULL: condition}) for name, condition in conditions.items()}
    wanted = alone[DROPPED] + 3 * (alone[FULL] - alone[DROPPED])
    torch.testing.assert_close(head.velocity(state, conditions), wanted, atol=1e-5, rtol=1e-4)
    late = head.step(head.step(head.step(state, conditions), conditions), conditions)
    # Outside its interval only one branch is decoded, so the bits are the same.
    assert torch.equal(head.velocity(late, conditions), head.velocity(late, {FULL: conditions[FULL]}))


def test_the_schedule_is_that_of_diffusers() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    state = built(SANA, shift=3.0).begin(request((2, 2)))
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(
        torch.tensor([level.sigma for level in state.walk.levels]), scheduler.sigmas, atol=1e-6, rtol=1e-6
    )


def test_a_published_decoder_is_loaded_and_nothing_else(tmp_path) -> None:
    theirs = built({**SANA, "in_channels": WIDTH, "out_channels": WIDTH, "caption_channels": 12})
    theirs.decoder.model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    head = built(str(tmp_path))
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    torch.nn.init.zeros_(head.decoder.model.proj_out.weight)
    load_part(head, str(tmp_path), "heads.paint")
    assert head.decoder.width == 12
    for name, tensor in head.state_dict().items():
        wanted = theirs.state_dict()[name] if name.startswith("decoder.model.") else before[name]
        assert torch.equal(tensor, wanted), name
    with pytest.raises(CheckpointError, match=r"missing: proj_out\.bias, proj_out\.weight"):
        head.from_published({n: x for n, x in theirs.decoder.model.state_dict().items() if "proj_out" not in n})


WRONG = [
    (SANA, {"in_channels": 4}, (2, 2), r"decoder\.in_channels: it is 4, and here it must be 6"),
    (SANA, {"guidance_embeds": True}, (2, 2), r"decoder\.guidance_embeds: .* is not wrapped"),
    (SANA, {"_class_name": "FluxTransformer2DModel"}, (2, 2), "FluxTransformer2DModel is not wrapped here"),
    (SD3, {}, (3, 4), "latents of 3 x 4 do not divide by its patches of 2 x 2"),
    (SD3, {}, (32, 2), r"latents of 32 x 2 are larger than it has positions for \(16 a side\)"),
    (LUMINA, {"axes_lens": [3, 8, 8]}, (2, 2), "queries: 3 queries, and .* has positions for 2"),
    (SANA, {}, (2, 2, 2), "it draws images, and latents of 3 axes"),
]


@pytest.mark.parametrize(("decoder", "options", "grid", "message"), WRONG, ids=[m[:24] for *_, m in WRONG])
def test_what_does_not_go_is_refused(decoder: dict, options: dict, grid: tuple[int, ...], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        built({**decoder, **options}).grid(grid)


QUICK = ("train.steps=2", "train.batch_samples=2", "train.warmup=1", "train.reconstruction.steps=2")


def test_the_recipe_trains_and_draws(tmp_path) -> None:
    train(load("query-decoder-tiny", QUICK), tmp_path / "run", quiet=True)
    model = mmkit.load(tmp_path / "run")
    image, again = (model.generate(["a red circle", mmkit.Image()], Sampling(steps=2))[0] for _ in range(2))
    assert image.shape == (3, 32, 32) and torch.equal(image, again)


RECIPE = """
model:
  tokenizers: {text: {type: bytes}, pixels: {type: pixel, connector: {type: patchify, size: 2}}}
  backbone: {type: dense, depth: 1, dim: 32, num_heads: 2}
  heads:
    say: {type: ar}
    paint:
      type: query_decoder
      queries: 4
      steps: 8
      decoder: {_class_name: SD3Transformer2DModel, num_layers: 2, num_attention_heads: 2, attention_head_dim: 32,
                caption_projection_dim: 64, pooled_projection_dim: 16, patch_size: 1, pos_embed_max_size: 4, sample_size: 4}
  streams:
    text: {modality: text, from: text, head: say}
    image: {modality: image, from: pixels, head: paint}
data: [{type: shapes, size: 16}]
train: {steps: 1, batch_samples: 2}
"""


@pytest.mark.slow
def test_two_pictures_are_learned_by_heart_and_drawn_by_name() -> None:
    """Different sentences must reach the decoder through the queries: one velocity field cannot draw both pictures."""
    torch.manual_seed(0)
    model = mmkit.UnifiedModel(loads(RECIPE)).train()
    pictures = {"dark": torch.full((3, 8, 8), 0.2), "light": torch.full((3, 8, 8), 0.8)}
    samples = [
        Sample(f"{name}{i}", (Segment("text", name), Segment("image", picture, "target")))
        for name, picture in pictures.items()
        for i in range(8)
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(300):
        (batch,) = model.batches(samples, step=step, budget=4096)
        loss = model(batch).heads["paint"].value_S.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    for name, picture in pictures.items():
        (drawn,) = model.generate([name, mmkit.Image(height=8, width=8)])
        # The two are 0.6 apart: a tenth of that is drawn by name beyond doubt.
        assert (drawn - picture).abs().mean() < 0.06, (name, float(drawn.mean()))
