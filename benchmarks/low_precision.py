"""A small Llama kept in bf16 and in float32 on the CPU, by mmkit and by `transformers`, timed in turn.

    python benchmarks/low_precision.py [--rounds 9] [--tokens 24] [--threads 2] [--json FILE]

Both have the same random weights: hidden 512, 8 layers, 8 query and 4 key heads, 1408 inside the MLP, a vocabulary of 32,000.
Before anything is timed, their logits are held against those of `transformers` in float32.

`transformers` is called as fast as it can be: its model alone, with a cache and the last logit only. mmkit is timed through
`generate`, with all that stands around its backbone: the prompt is 512 tokens and two marks. Every round runs all contestants
once, in turn, and a ratio is taken within the round, so that a busy machine slows both sides. Printed as Markdown are the
medians of these ratios and their quartiles; above 1 is in mmkit's favour. A token of decoding is the median of its round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mmkit
from mmkit.compose import loads
from mmkit.contracts.options import Sampling
from mmkit.contracts.values import Packed
from mmkit.kernels.linear import forget, held
from mmkit.model import UnifiedModel
from mmkit.sequence.lowering import lower
from mmkit.sequence.visibility import Visibility

PREFIX, DIM, DEPTH, HEADS, KEY_HEADS, INSIDE, CODES = 512, 512, 8, 8, 4, 1408, 32000
RECIPE = f"""
model:
  tokenizers: {{text: {{type: sentencepiece, vocab_size: {CODES}}}}}
  backbone: {{type: dense, depth: {DEPTH}, dim: {DIM}, num_heads: {HEADS}, num_kv_heads: {KEY_HEADS}, hidden_dim: {INSIDE}}}
  heads: {{say: {{type: ar}}}}
  streams: {{text: {{modality: text, from: text, head: say}}}}
data: [{{type: shapes}}]
train: {{steps: 1}}
"""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
NEAR = {"bf16": 2e-2, "fp32": 1e-4}
"""How far logits may be from those in float32, in the relative L2 norm: many roundings to bf16, or another order of summation."""
Steps = tuple[float, list[float]]
"""Seconds until the first logits, and between one token's logits and the next one's."""


@dataclass(frozen=True)
class Row:
    """mmkit against a peer: medians in milliseconds, and how many times as long the peer takes."""

    case: str
    peer_ms: float
    ours_ms: float
    ratio: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, case: str, peer: Sequence[float], own: Sequence[float]) -> Row:
        """Of the seconds that both took, round by round."""
        low, middle, high = statistics.quantiles(
            [a / b for a, b in zip(peer, own, strict=True)], n=4, method="inclusive"
        )
        return cls(case, statistics.median(peer) * 1e3, statistics.median(own) * 1e3, middle, (low, high))


def theirs() -> Any:
    """The model of `transformers`, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS,
        intermediate_size=INSIDE, vocab_size=CODES, rms_norm_eps=1e-6, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def ours(model: Any) -> UnifiedModel:
    """mmkit's, with the weights of that one. Marks, which that one lacks, are never the likeliest."""
    own = {"last.norm.weight": model.model.norm.weight}
    for index, layer in enumerate(model.model.layers):
        attention, mlp, block = layer.self_attn, layer.mlp, f"blocks.{index}"
        qkv = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        own |= {
            f"{block}.attention.qkv.weight": torch.cat(qkv),
            f"{block}.attention.out.weight": attention.o_proj.weight,
            f"{block}.attention_norm.weight": layer.input_layernorm.weight,
            f"{block}.mlp_norm.weight": layer.post_attention_layernorm.weight,
            f"{block}.mlp.up.weight": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            f"{block}.mlp.down.weight": mlp.down_proj.weight,
        }
    built = UnifiedModel(loads(RECIPE)).eval()
    built.backbone.load_state_dict(own)
    output = built.heads["say"].output.weight
    with torch.no_grad():
        built.connectors["text"].weight.copy_(model.model.embed_tokens.weight)
        output["text"].copy_(model.lm_head.weight)
        output["marks"].zero_()
    return built


def logits(model: UnifiedModel, ids: Tensor) -> Tensor:
    """mmkit's logits of every token, no marks among them."""
    count = len(ids)
    seen = Visibility(
        torch.zeros(count).int().numpy(), torch.arange(count).int().numpy(), torch.zeros(count).int().numpy()
    )
    with torch.no_grad():
        x_TD = model.connectors["text"](ids, [(count,)])
        packed = Packed(x_TD, torch.arange(count)[:, None], torch.zeros(count).long(), lower(seen, device="cpu"))
        return model.heads["say"].predict(model.backbone(packed).x_TD)[:, :CODES]


def check(theirs_by: dict[str, Any], ours_by: dict[str, UnifiedModel]) -> dict[str, float]:
    """How far mmkit's logits are from those in float32. Raises `SystemExit` where that is too far."""
    ids = torch.randint(CODES, (64,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs_by["fp32"](ids[None]).logits[0].double()
    off = {
        name: float((logits(model, ids).double() - wanted).norm() / wanted.norm()) for name, model in ours_by.items()
    }
    for name, error in off.items():
        if error > NEAR[name]:
            raise SystemExit(f"in {name} the logits are off by {error:.2g}, and {NEAR[name]} is allowed")
    return off


def their_steps(model: Any, ids: Tensor, tokens: int) -> Steps:
    """A prompt and `tokens` greedy tokens, with its own cache and nothing else around."""
    with torch.no_grad():
        marks = [time.perf_counter()]
        out = model(ids[None], use_cache=True, logits_to_keep=1)
        marks.append(time.perf_counter())
        for _ in range(tokens):
            found = out.logits[:, -1:].argmax(-1)
            out = model(found, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            marks.append(time.perf_counter())
    return _steps(marks)


def our_steps(model: UnifiedModel, ids: Tensor, tokens: int) -> Steps:
    """The same through `generate`; the tokenizer, which has learned nothing, is left out."""
    tokenizer, head = model.tokenizers["text"], model.heads["say"]
    tokenizer.encode = lambda contents: [ids for _ in contents]  # type: ignore[method-assign]
    tokenizer.decode = lambda contents: ["" for _ in contents]  # type: ignore[method-assign]
    marks: list[float] = []
    handle = head.output.register_forward_hook(lambda *_: marks.append(time.perf_counter()))
    marks.append(time.perf_counter())
    model.generate(["a prompt", mmkit.Text(max_tokens=tokens + 1)], Sampling(temperature=0))
    handle.remove()
    return _steps(marks)


def _steps(marks: Sequence[float]) -> Steps:
    first, *others = (after - before for before, after in pairwise(marks))
    return first, others


def rows(runs: dict[str, Callable[[], Steps]], rounds: int) -> list[Row]:
    """All contestants in turn; `runs` are named ``bf16 theirs`` and so on."""
    found: dict[str, list[Steps]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            steps = run()
            if number:
                found[name].append(steps)
    table = []
    for dtype in DTYPES:
        for case in ("prefill", "decode"):
            peer, own = (
                [s[0] if case == "prefill" else statistics.median(s[1]) for s in found[f"{dtype} {side}"]]
                for side in ("theirs", "ours")
            )
            title = f"prefill of {PREFIX}, last logit" if case == "prefill" else f"one token after {PREFIX}"
            table.append(Row.of(f"{title}, {dtype}", peer, own))
    return table


def report(found: Sequence[Row], peer: str, off: dict[str, float], rounds: int, path: Path | None) -> None:
    """Print the table, and write it to a file where one is named."""
    print(f"| case | {peer}, ms | mmkit, ms | {peer} / mmkit (quartiles) |")
    print("|---|---|---|---|")
    for row in found:
        low, high = row.quartiles
        print(f"| {row.case} | {row.peer_ms:.1f} | {row.ours_ms:.1f} | {row.ratio:.2f}x ({low:.2f} to {high:.2f}) |")
    print(f"\nfloat32 weights kept beside the bf16 ones: {held() / 2**20:.0f} MiB")
    if path:
        written = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": rounds, "off": off}
        path.write_text(json.dumps({**written, "rows": [asdict(row) for row in found]}, indent=2) + "\n")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=24, help="generated in every round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = theirs()
    ours_by = {name: ours(model).keep(dtype) for name, dtype in DTYPES.items()}
    theirs_by = {"fp32": model, "bf16": theirs().to(torch.bfloat16)}
    off = check(theirs_by, ours_by)
    about = f"{options.threads} threads, torch {torch.__version__}, {options.rounds} rounds"
    print(f"{about}; the logits of bf16 are off by {off['bf16']:.1e}\n")
    forget()
    ids = torch.randint(CODES, (PREFIX,), generator=torch.Generator().manual_seed(2))
    runs: dict[str, Callable[[], Steps]] = {}
    for name in DTYPES:
        runs[f"{name} theirs"] = lambda name=name: their_steps(theirs_by[name], ids, options.tokens)
        runs[f"{name} ours"] = lambda name=name: our_steps(ours_by[name], ids, options.tokens)
    report(rows(runs, options.rounds), "transformers", off, options.rounds, options.json)


if __name__ == "__main__":
    main()
