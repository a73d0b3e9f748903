"""Checks of options: typed from source, documented, rendered and loaded to the same, nonsense refused."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from mmkit.compose.docstrings import summary
from mmkit.compose.extract import options_class
from mmkit.compose.parts import BESIDE, common_keys
from mmkit.compose.rendering import plain
from mmkit.compose.scalars import alternatives, bare
from mmkit.compose.typed import hints, keyed_fields
from mmkit.contracts.options import Spec
from mmkit.errors import MmkitError, RecipeError
from mmkit.registry import KINDS
from mmkit.testing.cases import Case, PartCase, refusal, spec
from mmkit.testing.catalogue import PARTS, Inapplicable, check, demand

OPTIONED = tuple(kind for kind in KINDS if kind != "modality")
"""A modality has no options."""


@check(*OPTIONED, each=False)
def options_are_a_frozen_keyword_only_dataclass(case: Case) -> None:
    """``Config`` is a frozen dataclass whose fields are given by keyword."""
    cls = case.cls.Config
    demand(dataclasses.is_dataclass(cls), f"{cls}", "it is no dataclass")
    demand(cls.__dataclass_params__.frozen, f"{cls.__qualname__}", "it is not frozen")
    loose = [f.name for f in dataclasses.fields(cls) if f.init and not f.kw_only]
    demand(not loose, cls.__qualname__, f"{', '.join(loose)} may be given by position; write `kw_only=True`")


@check(*OPTIONED, each=False)
def options_are_read_without_importing_the_part(case: Case) -> None:
    """The options can be evaluated from source alone, so that recipes are typed without importing torch."""
    found = options_class(case.entry)
    fact = "its `Config` names what its source alone does not tell, so the module is imported to type a recipe"
    demand(hasattr(found, "__extracted__"), case.entry.target, fact)
    names = [{f.name for f in dataclasses.fields(c)} for c in (found, case.cls.Config)]
    demand(
        names[0] == names[1], case.entry.target, f"its source shows other options than its class: {names[0] ^ names[1]}"
    )


@check(*OPTIONED, each=False)
def options_do_not_take_a_common_key(case: Case) -> None:
    """No option is called what every part of a recipe has anyway (``type``, ``weights``, ``frozen``, ...)."""
    taken = set(keyed_fields(case.cls.Config)) & {*common_keys(case.entry.kind), *BESIDE.get(case.entry.kind, ())}
    demand(not taken, "Config", f"{', '.join(sorted(taken))} would never be read")


@check(*OPTIONED)
def options_render_and_load_to_the_same(case: Case) -> None:
    """Options written out as YAML, with every default, load to equal options."""
    written = json.loads(json.dumps(plain(case.spec.options)))
    again = spec(case.entry.kind, case.entry.name, written, case.registry)
    demand(again.options == case.spec.options, "Config", f"{written} loads to {again.options}")


@check(*OPTIONED)
def options_survive_pickling(case: Case) -> None:
    """Options reach workers and other ranks as they are."""
    demand(pickle.loads(pickle.dumps(case.spec.options)) == case.spec.options, "Config", "pickled, they are not equal")


@check(*OPTIONED)
def options_become_the_class_of_the_part(case: Case) -> None:
    """Options read from source turn into an instance of the real ``Config`` with equal values."""
    demand(isinstance(case.config, case.cls.Config), "Config", f"they become {type(case.config)}")


@check(*OPTIONED, each=False)
def options_are_documented(case: Case) -> None:
    """Every option is named, with a colon, in the ``Options:`` of the docstring of ``Config``."""
    fields = list(keyed_fields(case.cls.Config))
    text = case.cls.Config.__doc__ or ""
    if not fields:
        raise Inapplicable("it has no options")
    demand("Options:" in text, "Config", "its docstring has no `Options:`")
    said = {
        n
        for line in re.findall(r"^\s*([\w, ]+):", text.partition("Options:")[2], re.MULTILINE)
        for n in line.split(", ")
    }
    missing = [name for name in fields if name not in said]
    demand(not missing, "Config", f"its docstring does not say what {', '.join(missing)} mean")


@check(*KINDS, each=False)
def the_class_has_a_summary(case: Case) -> None:
    """The docstring's first paragraph, which ``mmkit list`` shows, can be read off the source."""
    demand(summary(case.entry), case.entry.target, "its class has no docstring that says what it is")


@check(*OPTIONED, each=False)
def an_unknown_option_is_refused(case: Case) -> None:
    """A mistyped key is an error that names it, with its rule."""
    error = refusal(
        lambda: spec(case.entry.kind, case.entry.name, {**case.options, "no_such_option": 1}, case.registry)
    )
    rules = {p.rule for p in error.problems} if isinstance(error, RecipeError) else set()
    demand("key.unknown" in rules, "Config", f"`no_such_option: 1` gives {error}")


@check(*OPTIONED, each=False)
def an_option_of_a_wrong_type_is_refused(case: Case) -> None:
    """Whatever is written for an option, a mapping or a word, is typed or refused with an error meant for users."""
    for name in keyed_fields(case.cls.Config):
        for nonsense in ({"no": {"such": "thing"}}, [[["deep"]]], "\x00 no word"):
            try:
                spec(case.entry.kind, case.entry.name, {**case.options, name: nonsense}, case.registry)
            except MmkitError:
                continue
            except Exception as error:
                demand(False, f"Config.{name}", f"{nonsense!r} raises {type(error).__name__}: {error}")


def _numbers(case: Case) -> Iterator[tuple[str, Any]]:
    """Numbers on the edge of what makes sense for each option that takes one."""
    for key, field in keyed_fields(case.cls.Config).items():
        kinds = [bare(hint) for hint in alternatives(hints(case.cls.Config)[field.name])]
        if int in kinds or float in kinds:
            yield from ((key, value) for value in (-1, 0, 3))
        if any((get_origin(kind) or kind) is tuple and get_args(kind) for kind in kinds):
            yield key, []


@check(*PARTS, each=False)
def nonsense_numbers_build_or_are_refused(case: PartCase) -> None:
    """-1, 0 and 3 for any number, and an empty list, give a part or an error meant for users, never a traceback."""
    for key, value in _numbers(case):
        try:
            found = spec(case.entry.kind, case.entry.name, {**case.options, key: value}, case.registry)
            other = type(case)(case.entry, {**case.options, key: value}, case.registry)
            vars(other).update({n: v for n, v in vars(case).items() if n in ("source", "space", "targets")})
            assert isinstance(found, Spec)
            other.build()
        except MmkitError:
            continue
        except Exception as error:
            demand(False, f"Config.{key}", f"{value!r} raises {type(error).__name__}: {error}")


@check(*PARTS, each=False)
def the_constructor_takes_what_its_contract_says(case: PartCase) -> None:
    """The constructor can be called with the options and what its kind's contract lists, by position, and nothing more."""
    signature = inspect.signature(case.cls)
    signature.bind(object(), *[object()] * len(case.arguments()))
    loose = [p for p in signature.parameters.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    demand(not loose, "__init__", f"{', '.join(map(str, loose))} hides what it takes")
