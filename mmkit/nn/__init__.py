"""Layers that parts share: attention, MLP, experts, norms, rotary turns, modulation."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    "top_k": "mmkit.nn.router:TopK",
    "expert_choice": "mmkit.nn.router:ExpertChoice",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's parts."""
    for name, target in CATALOGUE.items():
        register("router", name, target)
