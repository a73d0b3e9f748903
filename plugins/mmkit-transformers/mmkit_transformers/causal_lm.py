"""`causal_lm`: the decoder of any causal language model of transformers, under mmkit's mask, positions and cache.

Shape suffixes: T packed tokens, D width, A position axes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mmkit.contracts.backbone import Backbone
from mmkit.contracts.values import Hidden, Packed
from mmkit.nn.cache import KVCache
from mmkit_transformers.anatomy import Line, anatomy, balancing
from mmkit_transformers.attention import NAME, Reading
from mmkit_transformers.published import Restored, load, make

OUTPUTS = frozenset(("lm_head", "embed_out"))
"""Names of output layers, which are the head's affair."""


class CausalLM(Restored, Backbone):
    """A decoder of transformers (Llama, Qwen, Gemma, Mistral, Phi, GPT-NeoX, Mixtral, DeepSeek, ...) from its config.

    It runs the library's own code: its layers, norms and rotary positions, with attention by the plan of the batch and
    mmkit's cache. What cannot keep to them is refused when it is built, with the reason: layers that mix tokens other than
    by attention, attention with sinks, biases or capped scores, attention dropout, and models that need the ids of tokens.

    Embeddings come from connectors and logits from heads, so the model's table of tokens and its output layer are left out.
    A text stream's connector takes the table of the same checkpoint by ``weights: FOLDER#model.embed_tokens``.
    Sliding windows are its own. Tables of positions shorter than a sample are refused when the sample is laid out.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `causal_lm`.

        Options:
            config: the model's config as in a ``config.json``: ``model_type`` and its sizes. Left out where `weights` names a
                checkpoint, which has one. Of a model of several modalities, the text model's part is used.
            override: values that replace some of the config's, such as ``{attention_dropout: 0.0}``.
        """

        config: dict[str, Any]
        override: dict[str, Any] = field(default_factory=dict)

    examples = (
        {
            "config": {
                "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8,
            }
        },
        {
            "config": {
                "model_type": "phi", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "vocab_size": 8,
            }
        },
    )  # fmt: skip

    def __init__(self, config: Config, streams: Sequence[str]) -> None:
        """Raises `ContractError` where the model cannot keep to mmkit's mask, positions or cache."""
        super().__init__(config, streams)
        self.anatomy = anatomy(json.dumps(config.config), json.dumps(config.override))
        self.model = make(self.anatomy.config, attn_implementation=NAME)
        for path in self.anatomy.tables:
            self.model.set_submodule(path, nn.Identity())
        self.keep_derived(self.model)
        self.dim = self.anatomy.dim
        self.positions = Line(self.anatomy)
        self.window = self.anatomy.window
        self._recompute = False

    @staticmethod
    def checkpoint_options(folder: Any) -> dict[str, Any]:
        """The config of a published checkpoint."""
        return {"config": json.loads((folder / "config.json").read_text())}

    @property
    def recompute(self) -> bool:
        """Trades time for memory: activations inside a layer are computed again in the backward pass."""
        return self._recompute

    @recompute.setter
    def recompute(self, wanted: bool) -> None:
        if wanted and not self._recompute:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        elif self._recompute and not wanted:
            self.model.gradient_checkpointing_disable()
        self._recompute = wanted

    def forward(self, packed: Packed, cache: KVCache | None = None) -> Hidden:
        """``[T, D]`` to ``[T, D]``, normed. With a cache, `packed` holds new tokens only."""
        if not len(packed.x_TD):
            return Hidden(packed.x_TD)  # the library's reshapes cannot tell what nothing is made of
        positions = packed.positions_TA.T[:, None] if self.positions.axes > 1 else packed.positions_TA.T
        routed = {"output_router_logits": True} if self.anatomy.balances else {}
        out = self.model(
            inputs_embeds=packed.x_TD[None], position_ids=positions, use_cache=False,
            mmkit=Reading(packed.plan, cache, packed.window_plan, self.anatomy.windowed), **routed,
        )  # fmt: skip
        losses = {"balance": self._balance(out.router_logits)} if routed and cache is None else {}
        return Hidden(out.last_hidden_state[0], losses)

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """Room for `rows` sequences of at most `capacity` tokens, on the weights' device and in their dtype."""
        weight = next(self.parameters())
        facts = self.anatomy
        return KVCache(facts.layers, rows, capacity, facts.kv_heads, facts.head_dim, weight.device, weight.dtype)

    def from_published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The decoder's tensors of a published checkpoint; its table of tokens and its output layer are left out.

        Raises `CheckpointError` that names what is missing, of another shape, or not used.
        """
        found = load(self.model, tensors, OUTPUTS, attn_implementation=NAME)
        return {f"model.{name}": tensor for name, tensor in found.items()}

    def _balance(self, logits: Sequence[Tensor]) -> Tensor:
        """The auxiliary loss that evens out the experts' load (Fedus et al. 2021), as the model's own library weighs it."""
        config = self.model.config
        experts = logits[0].shape[-1]
        loss = balancing(self.model)(tuple(logits), experts, config.num_experts_per_tok)
        return config.router_aux_loss_coef * loss
