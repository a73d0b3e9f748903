"""The implementations of an op, by the names that recipes and the environment write."""

from __future__ import annotations

from mmkit.errors import PluginError
from mmkit.registry import AUTO, OPS, Entry, Registry, near


def kernel(registry: Registry, op: str, name: str) -> Entry:
    """The implementation `name`, bare or ``owner/name``, of an op; raises as `Registry.find` does, and on an unknown op."""
    place = f"kernel {name!r} of {op}"
    if op not in OPS:
        remedy = f"{near(op, OPS)}ops are {', '.join(OPS)}"
        raise PluginError(place, f"mmkit has no op {op!r}", remedy, rule="key.unknown")
    owner, slash, bare = name.rpartition("/")
    try:
        return registry.find("kernel", f"{owner}{slash}{op}.{bare}")
    except PluginError as error:
        # In the words of a recipe, which names the op and the kernel apart.
        fact, remedy = (text.replace(f"{op}.", "") for text in (error.problem.fact, error.problem.remedy))
        if error.problem.rule == "part.unknown":
            known = names(registry, op)
            remedy = f"{near(name, known)}known for {op}: {', '.join(known)}"
        raise PluginError(place, fact, remedy, error.problem.rule) from None


def names(registry: Registry, op: str) -> list[str]:
    """The names by which a recipe may name the implementations of an op, sorted."""
    split = (name.rpartition("/") for name in registry.kernels)
    return sorted(f"{a}{slash}{b.removeprefix(f'{op}.')}" for a, slash, b in split if b.startswith(f"{op}."))


def check(registry: Registry, op: str, name: str) -> None:
    """Raises as `kernel` does where a recipe cannot name this implementation of an op; `AUTO` is always right."""
    if name != AUTO or op not in OPS:
        kernel(registry, op, name)
