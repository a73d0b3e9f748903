"""Tokens per second of training and of sampling: `transfusion-tiny` beside the same backbone in transformers, in turn.

Both sides hold the same weights (a Llama of the recipe's sizes, with Qwen3's QK-norm) and read the same tokens. Ours trains the
whole recipe (text and flow loss, mixed mask, packing); theirs trains next-token prediction on as many tokens under a plain
causal mask, which is what such a model costs there at best. Sampling is greedy text from the same prompts, batch by batch.

    python benchmarks/transfusion_tiny.py [--rounds 9] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor

import mmkit
from mmkit import compose
from mmkit.contracts.options import Sampling
from mmkit.data.mixture import Mixture
from mmkit.model import UnifiedModel
from mmkit.objectives import Joint
from mmkit.train import fit_tokenizers


def peer(model: UnifiedModel, vocabulary: int) -> transformers.Qwen3ForCausalLM:
    """The backbone of the recipe in transformers, with the same weights."""
    options = model.recipe.model.backbone.options
    head_dim = options.dim // options.num_heads
    mlp = model.backbone.blocks[0].mlp
    config = transformers.Qwen3Config(
        vocab_size=vocabulary, hidden_size=options.dim, num_hidden_layers=options.depth, num_attention_heads=options.num_heads,
        num_key_value_heads=options.num_kv_heads or options.num_heads, head_dim=head_dim,
        intermediate_size=mlp.up.weight.shape[0] // 2, tie_word_embeddings=False, rms_norm_eps=1e-6, pad_token_id=0,
        attn_implementation="sdpa",
    )  # fmt: skip
    theirs = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for ours, layer in zip(model.backbone.blocks, theirs.model.layers, strict=True):
            projections = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
            for part, target in zip(
                ours.attention.qkv.weight.split([p.out_features for p in projections]), projections, strict=True
            ):
                target.weight.copy_(part)
            for part, target in zip(ours.mlp.up.weight.chunk(2), (layer.mlp.gate_proj, layer.mlp.up_proj), strict=True):
                target.weight.copy_(part)
            layer.mlp.down_proj.weight.copy_(ours.mlp.down.weight)
    return theirs


def in_turn(one: Callable[[], int], other: Callable[[], int], rounds: int) -> tuple[float, float, list[float]]:
    """Median tokens per second of both, and the ratio of each round."""
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side, work in enumerate((one, other)):
            started = time.perf_counter()
            tokens = work()
            if number:  # the first round warms up
                rates[side].append(tokens / (time.perf_counter() - started))
    ratios = [a / b for a, b in zip(*rates, strict=True)]
    return statistics.median(rates[0]), statistics.median(rates[1]), ratios


def main() -> None:
    """Runs both measurements and prints a table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--json", help="also write the figures here")
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    recipe = compose.load("transfusion-tiny")
    mixture = Mixture([(m.source.build(), m.weight) for m in recipe.data], 0)
    model = UnifiedModel(recipe)
    fit_tokenizers(model.tokenizers, mixture)
    model.sizes = mixture.sizes()
    theirs = peer(model, model.heads["say"].vocabulary.size)
    rows = [
        ("training", *_training(model, theirs, mixture, chosen.rounds)),
        ("greedy text", *_text(model, theirs, chosen.rounds)),
    ]
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.processor() or platform.machine()}, "
          f"{chosen.threads} threads, fp32\n")  # fmt: skip
    print("| | mmkit tokens/s | transformers tokens/s | ratio, median (min to max) |\n|---|---|---|---|")
    for name, ours, other, ratios in rows:
        print(
            f"| {name} | {ours:,.0f} | {other:,.0f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    if chosen.json:
        figures = [{"case": n, "mmkit": a, "transformers": b, "ratios": r} for n, a, b, r in rows]
        Path(chosen.json).write_text(json.dumps(figures, indent=1))


def _training(
    model: UnifiedModel, theirs: torch.nn.Module, mixture: Mixture, rounds: int
) -> tuple[float, float, list[float]]:
    objective = Joint(model)
    ours = torch.optim.AdamW(model.parameters(), lr=1e-4)
    other = torch.optim.AdamW(theirs.parameters(), lr=1e-4)
    steps = iter(range(10_000))
    seen: list[Tensor] = []

    def train_ours() -> int:
        tokens = 0
        step = next(steps)
        for share in objective.shares(objective.prepare(mixture.draw(step, 64), step), step):
            share.loss.backward()
            tokens += share.tokens
        ours.step()
        ours.zero_grad()
        seen.append(torch.randint(0, 300, (64, max(2, tokens // 64))))
        return tokens

    def train_theirs() -> int:
        ids = seen[-1]
        theirs(input_ids=ids, labels=ids).loss.backward()
        other.step()
        other.zero_grad()
        return ids.numel()

    return in_turn(train_ours, train_theirs, rounds)


def _text(model: UnifiedModel, theirs: torch.nn.Module, rounds: int) -> tuple[float, float, list[float]]:
    model.eval()
    theirs.eval()
    batch, length = 32, 24
    prompt = "a red circle above a blue square"
    head = model.heads["say"]
    end = head.vocabulary.of("marks").offset + model.router.rules["text"].end
    ids = model.tokenizers["text"].encode([prompt])[0][None].expand(batch, -1)

    def say_ours() -> int:
        counts = []
        predict = head.predict

        def without_end(hidden: Tensor) -> Tensor:  # both sides write `length` tokens
            logits = predict(hidden)
            counts.append(len(logits))
            return logits.index_fill(1, torch.tensor([end]), -1e9)

        head.predict = without_end  # type: ignore[method-assign]
        try:
            model.generate_batch([[prompt, mmkit.Text(max_tokens=length)]] * batch, Sampling(temperature=0.0))
        finally:
            del head.predict
        return sum(counts)

    @torch.no_grad()
    def say_theirs() -> int:
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, min_new_tokens=length,
                              do_sample=False)  # fmt: skip
        return int((out.shape[1] - ids.shape[1]) * batch)

    return in_turn(say_ours, say_theirs, rounds)


if __name__ == "__main__":
    main()
