"""``{type: name, ...}`` to a `Spec`: the part's own options, the keys common to parts, and what a checkpoint says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from mmkit.compose.document import POISON, Layer, Path_, short
from mmkit.compose.extract import class_function, options_class
from mmkit.compose.scalars import Refusal
from mmkit.compose.typed import BAD, Typer, keyed_fields, required, shape
from mmkit.compose.weights import Weights, distribution_kept, options_kept
from mmkit.compose.words import nearest
from mmkit.contracts.options import NonNegative, Spec
from mmkit.errors import MmkitError, PluginError
from mmkit.registry import Entry, Registry

PLAIN_KINDS = frozenset(("positions", "router", "sampler", "source", "modality", "task", "metric", "launcher"))
"""Kinds without weights of their own, so without the keys common to parts."""
BESIDE = {"source": ("weight",), "task": ("name", "metrics")}
"""Keys that stand beside a part's own and are read by whoever lists it."""
CONNECTED_KINDS = frozenset(("encoder", "tokenizer"))
COMMON: dict[str, Any] = {"weights": str | None, "frozen": bool, "lr_scale": NonNegative}
RESERVED = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile copy cpu cuda double
    dump_patches eval extra_repr float forward fromkeys get get_buffer get_extra_state get_parameter get_submodule
    half ipu items keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters
    parameters pop popitem register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule setdefault share_memory state_dict to
    to_empty train training type update values xpu zero_grad
    """.split()  # noqa: SIM905 (sixty names read better in lines than in quotes)
)
"""The methods of `torch.nn.ModuleDict` and `ParameterDict`, written down so that names are checked without torch."""


def common_keys(kind: str) -> tuple[str, ...]:
    """The keys that any part of a kind may have beside its own options."""
    if kind in PLAIN_KINDS:
        return ("type",)
    return ("type", *COMMON, "connector") if kind in CONNECTED_KINDS else ("type", *COMMON)


class RecipeTyper(Typer):
    """Types one recipe, with the parts of one registry."""

    def __init__(self, layer: Layer, registry: Registry) -> None:
        super().__init__(layer)
        self.registry = registry

    def parts(self, value: Any, kind: str, path: Path_) -> Any:
        """A mapping of names to parts; a part with a mistake is kept as `BAD`."""
        if not isinstance(value, dict):
            if not (isinstance(value, str) and POISON in value):
                self.report(
                    path, f"{shape(value)} is written, and a mapping of names to {kind}s is needed", "", "type.wrong"
                )
            return BAD
        return {
            name: self.part(part, kind, (*path, name)) if self.name(name, (*path, name)) else BAD
            for name, part in value.items()
            if not self._taken_away(part, (*path, name))
        }

    def name(self, name: str, path: Path_) -> bool:
        """True where a name can be part of a parameter's name; a mistake otherwise."""
        if name in RESERVED:
            fact = f"{name!r} is what a method of torch's modules is called, so nothing can be stored under it"
            self.report(path, fact, "choose another name", "name.reserved", key=True)
            return False
        if name.isascii() and name.replace("-", "_").isidentifier():
            return True
        self.report(
            path,
            f"{short(name)!r} is not a name",
            "use letters, digits, - and _, a letter first",
            "name.form",
            key=True,
        )
        return False

    def part(self, value: Any, kind: str, path: Path_, *, default: Any = None) -> Any:
        """The `Spec` of ``{type: name, ...}``, or of the bare name. `default` is what stands there when nothing is written."""
        if isinstance(value, Spec):
            return value
        if isinstance(value, str) and POISON not in value:
            value = {"type": value}
        if not isinstance(value, dict):
            if not (isinstance(value, str) and POISON in value):
                fact = f"{shape(value)} is written, and a {kind} is needed"
                self.report(path, fact, "write `{type: ...}`", "type.wrong", key=True)
            return BAD
        if isinstance(default, str):
            default = {"type": default}
        if default and "type" not in value:
            value = {**default, **value}
        weights = self._weights(value, kind, path)
        entry = self._entry(value, kind, path, weights)
        common = self._common(value, kind, path)
        if entry is None:
            return BAD
        return self._spec(entry, value, common, weights, path)

    def _weights(self, value: dict[str, Any], kind: str, path: Path_) -> Weights | None:
        text = value.get("weights")
        if kind in PLAIN_KINDS or not isinstance(text, str) or POISON in text:
            return None
        weights = Weights.parse(text)
        if isinstance(weights, Weights):
            return weights
        self.report((*path, "weights"), weights.fact, weights.remedy, weights.rule)
        return None

    def _entry(self, value: dict[str, Any], kind: str, path: Path_, weights: Weights | None) -> Entry | None:
        name = value.get("type")
        if name is None and weights and not weights.hub:
            kept = self._kept(weights, path)
            name = kept.get("type") if kept is not None else BAD
        if name is BAD or (isinstance(name, str) and POISON in name):
            return None
        if name is None:
            self._no_type(value, kind, path)
            return None
        if not isinstance(name, str):
            self.report((*path, "type"), f"{shape(name)} is written, and a name is needed", "", "type.wrong")
            return None
        try:
            entry = self.registry.find(kind, name)
            options_class(entry)
        except PluginError as error:
            problem = error.problem
            if problem.rule == "part.unknown":
                self.report((*path, "type"), *self._unknown_part(kind, name, weights), "part.unknown")
            else:
                self.report((*path, "type"), problem.fact, problem.remedy, problem.rule or "part.broken")
            return None
        return entry

    def _no_type(self, value: dict[str, Any], kind: str, path: Path_) -> None:
        known = ", ".join(self.registry.names(kind)) or "none"
        options = {key for entry in self.registry.of(kind) for key in self._keys(entry)} | {*common_keys(kind)}
        for key in value:
            if key not in options and nearest(key, ["type"]):
                self.report(
                    (*path, key), f"unknown key {short(key)!r}", "did you mean 'type'?", "key.unknown", key=True
                )
                return
        self.report(path, "the key 'type' is missing", f"known {kind}s: {known}", "key.missing", key=True)

    def _keys(self, entry: Entry) -> Iterable[str]:
        try:
            return keyed_fields(options_class(entry))
        except PluginError:
            return ()

    def _unknown_part(self, kind: str, name: str, weights: Weights | None) -> tuple[str, str]:
        known = self.registry.names(kind)
        near = nearest(name, known)
        elsewhere = [k for k, n in self.registry.entries if n == name]
        broken = (
            f". Broken plugins: {', '.join(self.registry.broken)} (see `mmkit list`)" if self.registry.broken else ""
        )
        hint = f"did you mean {near!r}? " if near else f"{name!r} is a {elsewhere[0]}. " if elsewhere else ""
        fact = f"no installed package provides {'an' if kind[0] in 'aeiou' else 'a'} {kind} named {short(name)!r}"
        kept = distribution_kept(weights, kind, name.rpartition("/")[2]) if weights and weights.of_run else ""
        if kept:
            return f"{fact}; {short(weights.place)} was trained with {kept}", f'pip install "{kept}"'
        return fact, f"{hint}known: {', '.join(known) or 'none'}{broken}"

    def _common(self, value: dict[str, Any], kind: str, path: Path_) -> dict[str, Any]:
        out = {}
        for key, hint in COMMON.items() if kind not in PLAIN_KINDS else ():
            if key in value and not (value[key] is None and (*path, key) in self.layer.removed):
                out[key] = self.value(value[key], hint, (*path, key))
        if kind in CONNECTED_KINDS and value.get("connector") is not None:
            out["connector"] = self.part(value["connector"], "connector", (*path, "connector"))
        return out

    def _spec(
        self, entry: Entry, value: dict[str, Any], common: dict[str, Any], weights: Weights | None, path: Path_
    ) -> Any:
        cls = options_class(entry)
        keys = common_keys(entry.kind)
        fields = keyed_fields(cls)
        own = {k: v for k, v in value.items() if k not in keys or k in fields}
        if weights and any(k not in own for k in fields):
            kept = self._filled(weights, entry, own, fields, path)
            if kept is None:
                return BAD
            own = {**{k: v for k, v in kept.items() if k in fields}, **own}
        before = len(self.problems)
        # What stands beside has been read already, so only a mistyped key gets here.
        known = [*fields, *keys, *BESIDE.get(entry.kind, ())]
        self.unknown_keys(own, known, path, owner=f" of {entry.kind} {entry.name!r}")
        options = self.dataclass({k: v for k, v in own.items() if k in fields}, cls, path)
        # A connector with a mistake does not hide what else is to say about what it belongs to.
        shared = [value for key, value in common.items() if key != "connector"]
        if len(self.problems) > before or BAD in (options, *shared):
            return BAD
        spec = Spec(entry, options, spec_path(path), **common)
        return self._frozen(spec, path) if spec.frozen and spec.weights is None else spec

    def _frozen(self, spec: Spec, path: Path_) -> Any:
        """A frozen part without weights takes its default ones, or is refused: random weights would stay random."""
        default = class_function(spec.entry, "default_weights")  # type: ignore[arg-type]
        weights = default(spec.options) if default else None
        if weights is None:
            fact = f"{spec.entry.kind} {spec.name!r} is frozen, and no weights are named: it would stay random"
            return self.report((*path, "frozen"), fact, "name `weights:`, or leave `frozen` out", "frozen.random")
        return dataclasses.replace(spec, weights=weights)

    def _kept(self, weights: Weights, path: Path_) -> dict[str, Any] | None:
        kept: Any = weights.folder()
        if not isinstance(kept, Refusal):
            kept = options_kept(weights, spec_path(path)) if weights.of_run else {}
        if isinstance(kept, Refusal):
            self.report((*path, "weights"), kept.fact, kept.remedy, kept.rule)
            return None
        return kept

    def _filled(
        self,
        weights: Weights,
        entry: Entry,
        own: dict[str, Any],
        fields: dict[str, dataclasses.Field[Any]],
        path: Path_,
    ) -> dict[str, Any] | None:
        """Options that a recipe leaves to the checkpoint it names; None where they cannot be had."""
        if weights.of_run:
            kept = self._kept(weights, path)
            if kept is not None and kept.get("type") != entry.name:
                fact = f"{weights} is a {short(kept.get('type'))!r}, not a {entry.name!r}"
                self.report((*path, "type"), fact, "name the same type, or leave it out", "weights.part")
                return None
            return kept
        missing = [k for k, f in fields.items() if k not in own and required(f)]
        folder = weights.folder()
        if isinstance(folder, Refusal):
            if missing:
                self.report((*path, "weights"), folder.fact, folder.remedy, folder.rule)
                return None
            return {}
        read = class_function(entry, "checkpoint_options")
        if read is not None:
            try:
                return read(folder)
            except (MmkitError, OSError, KeyError) as error:
                fact = f"{entry.kind} {entry.name!r} cannot read its options from {weights}: {short(str(error), 200)}"
                self.report((*path, "weights"), fact, "write them out", "weights.sizes")
                return None
        if missing:
            fact = f"{entry.kind} {entry.name!r} cannot read {', '.join(missing)} from {weights}"
            self.report((*path, "weights"), fact, "write them out", "weights.sizes")
            return None
        return {}


def spec_path(path: Path_) -> str:
    """A part's own path, which its parameters' names begin with: connectors stand apart, by the name of their source."""
    inside = path[1:] if path[:1] == ("model",) else path
    if len(inside) == 3 and inside[0] in ("tokenizers", "encoders") and inside[2] == "connector":
        return f"connectors.{inside[1]}"
    return ".".join(inside)
