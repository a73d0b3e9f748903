"""One YAML scalar, typed by what the schema expects and not by YAML's guess: ``no``, ``010``, ``1e-3``, ``12:30``."""

from __future__ import annotations

import functools
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from mmkit.compose.document import short
from mmkit.compose.words import nearest

BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_YES_NO = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}


@dataclass(frozen=True)
class Refusal:
    """Why a value was not taken."""

    fact: str
    remedy: str
    rule: str


def alternatives(hint: Any) -> Iterator[Any]:
    """The members of a union, at any depth; the hint itself where it is none."""
    if get_origin(hint) in (Union, types.UnionType):
        for member in get_args(hint):
            yield from alternatives(member)
    else:
        yield hint


def bare(hint: Any) -> Any:
    """A hint without its `Annotated` constraints."""
    return bare(get_args(hint)[0]) if get_origin(hint) is typing.Annotated else hint


def accepts_null(hint: Any) -> bool:
    """True where null is one of its values."""
    return any(bare(h) in (None, type(None), Any) for h in alternatives(hint))


def scalar(text: Any, quoted: bool, hint: Any) -> Any:
    """The value of one scalar, or a `Refusal`. `text` is the text as written (None: null), or a Python scalar."""
    for member in sorted(alternatives(hint), key=_order):
        value = _candidate(text, quoted, bare(member))
        if value is not _NOTHING:
            return _constrained(value, member, hint)
    return _refuse(text, quoted, hint)


_NOTHING = object()


def _order(hint: Any) -> int:
    """What is tried first: exact words, then numbers, text last, since any scalar could be text."""
    base = bare(hint)
    return 0 if get_origin(base) is Literal else {type(None): 1, bool: 2, int: 3, float: 4}.get(base, 5)


def _candidate(text: Any, quoted: bool, base: Any) -> Any:
    if get_origin(base) is Literal:
        return next((m for m in get_args(base) if _literal(text, quoted, m)), _NOTHING)
    if base is Any:
        return _guess(text, quoted)
    if base in (None, type(None)):
        return None if text is None else _NOTHING
    if text is None:
        return _NOTHING
    if not isinstance(text, str):
        return _python(text, base)
    if base is str:
        return text
    if base is Path:
        return Path(text)
    return _NOTHING if quoted else _plain(text, base)


def _literal(text: Any, quoted: bool, member: Any) -> bool:
    if isinstance(text, str) and not isinstance(member, str):
        return _candidate(text, quoted, type(member)) == member
    return type(text) is type(member) and text == member


def _plain(text: str, base: Any) -> Any:
    if base is bool:
        return BOOLS.get(text, _NOTHING)
    if base is int and _INT.fullmatch(text) and len(text) < 100:
        return int(text, 0)
    if base is float and _FLOAT.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else _NOTHING
    return _NOTHING


def _python(value: Any, base: Any) -> Any:
    """A value given from Python, where the types already are what they are."""
    if base is float and type(value) is int:
        return float(value)
    if base is Path and isinstance(value, Path):
        return value
    if base is str and isinstance(value, Path):
        return str(value)
    return value if type(value) is base and value == value else _NOTHING


def _guess(text: Any, quoted: bool) -> Any:
    if not isinstance(text, str) or quoted:
        return text
    for base in (bool, int, float):
        value = _plain(text, base)
        if value is not _NOTHING:
            return value
    return text


def _constrained(value: Any, member: Any, hint: Any) -> Any:
    try:
        return adapter(member).validate_python(value, strict=True)
    except ValidationError:
        fact = (
            f"{short(value)!r} is not {describe(hint)}"
            if isinstance(value, str)
            else f"{value} is not {describe(hint)}"
        )
        return Refusal(fact, "", "value.range")


@functools.cache
def adapter(hint: Any) -> TypeAdapter[Any]:
    """Pydantic's validator of one hint."""
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def _refuse(text: Any, quoted: bool, hint: Any) -> Refusal:
    expected = describe(hint)
    bases = [bare(h) for h in alternatives(hint)]
    if text is None:
        return Refusal(f"nothing is written, and {expected} is needed", "write it, or delete the key", "type.wrong")
    shown = f"{short(text)!r}" if isinstance(text, str) else f"{short(text)} ({type(text).__name__})"
    words = [m for b in bases if get_origin(b) is Literal for m in get_args(b)]
    if words:
        near = nearest(str(text), [str(w) for w in words])
        return Refusal(f"{shown} is not {expected}", f"did you mean {near!r}?" if near else "", "value.choice")
    fact = f"{shown} is not {expected}"
    if quoted and scalar(text, False, hint) is not None and not isinstance(scalar(text, False, hint), Refusal):
        return Refusal(f"{fact}, but text in quotes", "remove the quotes", "type.wrong")
    remedy = _trap(text, bases) if isinstance(text, str) else ""
    return Refusal(fact, remedy, "yaml.trap") if remedy else Refusal(fact, _whole(text, bases), "type.wrong")


def _trap(text: str, bases: list[Any]) -> str:
    """What to write in place of the words and numbers that YAML 1.1 and 1.2 read differently."""
    if bool in bases and text.lower() in _YES_NO:
        return f"write `{str(_YES_NO[text.lower()]).lower()}`"
    if not {int, float} & set(bases):
        return ""
    if re.fullmatch(r"[-+]?0[0-9_]+(\.[0-9]*)?", text):
        return f"leading zeros mean octal to some readers: write {text.replace('_', '').lstrip('+-0') or '0'}"
    if re.fullmatch(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?", text):
        return "colons make a base-60 number to some readers: write the number out"
    if re.fullmatch(r"[-+]?(\.inf|\.nan|inf|nan|infinity)", text, re.IGNORECASE):
        return "write a finite number"
    if re.fullmatch(r"0b[01_]+", text):
        return f"write {int(text, 0) if '__' not in text and not text.endswith('_') else 'it in decimal'}"
    return ""


def _whole(text: Any, bases: list[Any]) -> str:
    if int in bases and isinstance(text, str) and _FLOAT.fullmatch(text) and len(text) < 20:
        value = float(text)
        if value.is_integer() and abs(value) < 1e15:
            return f"write {int(value)}"
    return ""


def describe(hint: Any) -> str:
    """What a hint takes, in words."""
    members = [h for h in alternatives(hint) if bare(h) not in (None, type(None))]
    text = " or ".join(dict.fromkeys(_describe(h) for h in members))
    return f"{text} or null" if accepts_null(hint) and members else text


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path", Any: "a value"}


def _describe(hint: Any) -> str:
    if get_origin(hint) is typing.Annotated:
        base, *notes = get_args(hint)
        return f"{_describe(base)}{_bounds(notes)}"
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(str(a).lower() if isinstance(a, bool) else str(a) for a in args)}"
    if (origin or hint) in (list, tuple):
        if origin is tuple and args and args[-1] is not Ellipsis:
            return f"a list [{', '.join(map(_describe, args))}]"
        return f"a list [{_describe(args[0])}, ...]" if args else "a list"
    if (origin or hint) is dict:
        return f"a mapping {{name: {describe(args[1])}, ...}}" if args else "a mapping"
    return _WORDS.get(hint) or ("a part" if getattr(hint, "__name__", "") == "Spec" else "a mapping")


def _bounds(notes: list[Any]) -> str:
    low = next((f"at least {n.ge}" for n in notes if isinstance(n, Ge)), "")
    low = next((f"above {n.gt}" for n in notes if isinstance(n, Gt)), low)
    high = next((f"at most {n.le}" for n in notes if isinstance(n, Le)), "")
    high = next((f"below {n.lt}" for n in notes if isinstance(n, Lt)), high)
    both = " and ".join(filter(None, (low, high)))
    return f" of {both}" if both.startswith("at") else f" {both}" if both else ""
