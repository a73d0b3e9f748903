"""YAML text -> a `Layer`: plain mappings, lists and scalars with the place of each. Nothing is typed or built here.

Scalars stay text, so that the schema types them and not YAML's guess. A text is bounded (bytes, depth, values once its
aliases are expanded) before anything is made of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yaml.reader import Reader

from mmkit.errors import Problem

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 10_000
MAX_BRACKETS = 128
"""Open brackets anywhere, text and comments included."""

POISON = "\0"
"""Stands where a value was refused already (no YAML text can hold it), so that it is not refused twice."""

Path_ = tuple[str, ...]
Tree = dict[str, "Tree"] | list["Tree"] | str | None  # type: ignore[misc]

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_NOT_A_NAME = re.compile(
    r"[-+]?(\.?[0-9][0-9_]*(\.[0-9]*)?([eE][-+]?[0-9]+)?|\.(inf|nan))|true|false|null|~|", re.IGNORECASE
)

_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_ESCAPED = ("an escape stands for no character that text can hold", "remove it", "yaml.character")


@dataclass(frozen=True)
class Place:
    """Where something is written; lines and columns count from 1, 0 means none (a command line's override)."""

    file: str
    line: int = 0
    column: int = 0


@dataclass
class Layer:
    """One file, or what is left of several after a merge.

    `values` and `keys` hold the place of every value and of the key before it, by path. `quoted` are the scalars written
    in quotes, `removed` the paths where ``null`` takes away what a lower layer says.
    """

    tree: Tree = field(default_factory=dict)
    values: dict[Path_, Place] = field(default_factory=dict)
    keys: dict[Path_, Place] = field(default_factory=dict)
    quoted: set[Path_] = field(default_factory=set)
    removed: set[Path_] = field(default_factory=set)

    def place(self, path: Path_, *, key: bool = False) -> Place:
        """The place of a path, or of the nearest one above it that is written; of its key where there is one and `key`."""
        for cut in range(len(path), 0, -1):
            at = path[:cut]
            found = (self.keys.get(at) or self.values.get(at)) if key or cut < len(path) else self.values.get(at)
            if found:
                return found
        return self.values.get((), Place(""))

    def problem(self, path: Path_, fact: str, remedy: str, rule: str, *, key: bool = False) -> Problem:
        """A mistake at a path."""
        place = self.place(path, key=key)
        return Problem(".".join(path), fact, remedy, rule, place.file, place.line, place.column)


def short(value: object, limit: int = 60) -> str:
    """A value as messages show it: on one line, and never long."""
    text = value if isinstance(value, str) else str(value)
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return text if len(text) <= limit else f"{text[: limit - 12]}... ({len(text)} characters)"


def parse(data: bytes | str, file: str) -> tuple[Layer | None, list[Problem]]:
    """The layer of one text, and its mistakes. None where it cannot be read on at all."""
    text, problem = _decode(data, file)
    if problem:
        return None, [problem]
    bracket = _too_many_brackets(text)
    if bracket >= 0:
        at = (file, text.count("\n", 0, bracket) + 1, bracket - text.rfind("\n", 0, bracket))
        return None, [Problem("", f"more than {MAX_BRACKETS} brackets are open", "flatten it", "yaml.depth", *at)]
    loader = _Loader(text, file)
    try:
        node = loader.get_single_node()
    except _Refused as refused:
        return None, [*loader.problems, refused.problem]
    except yaml.MarkedYAMLError as error:
        return None, [*loader.problems, _syntax(error, file)]
    if node is None:
        return None, [Problem("", "the recipe is empty", "write at least `model:`", "yaml.empty", file, 1, 1)]
    return _Builder(file, loader.problems).build(node)


def _decode(data: bytes | str, file: str) -> tuple[str, Problem | None]:
    if len(data) > MAX_BYTES:
        fact = f"a recipe may have at most {MAX_BYTES} bytes"
        return "", Problem("", fact, "keep data out of recipes", "yaml.size", file, 1, 1)
    if isinstance(data, bytes):
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = data[: error.start]
            line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
            fact = f"the byte 0x{data[error.start]:02x} is not UTF-8"
            return "", Problem("", fact, "save the file as UTF-8", "yaml.encoding", file, line, column)
    else:
        text = data
    bad = Reader.NON_PRINTABLE.search(text) or re.search("\ufeff", text)
    if bad:
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        fact = f"the character U+{ord(bad.group()):04X} cannot stand in YAML"
        return "", Problem("", fact, "delete it", "yaml.character", file, line, column)
    return text, None


class _Refused(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class _Loader(yaml.SafeLoader):
    """PyYAML's composer, stopped at the first event that is too deep or one too many: nothing large is ever built."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self.file = file
        self.problems: list[Problem] = []
        self.depth = self.count = 0

    def get_event(self) -> yaml.Event:
        event = super().get_event()
        self.count += 1
        if isinstance(event, yaml.CollectionStartEvent):
            self.depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            self.depth -= 1
        if self.depth > MAX_DEPTH:
            raise _Refused(self._problem(event, f"nested more than {MAX_DEPTH} deep", "flatten it", "yaml.depth"))
        if self.count > 2 * MAX_VALUES:
            fact = f"more than {MAX_VALUES} values"
            raise _Refused(self._problem(event, fact, "keep data out of recipes", "yaml.size"))
        tag = getattr(event, "tag", None)
        if tag is not None:
            fact = f"the tag {short(tag)!r} asks YAML to build something, which recipes never do"
            self.problems.append(self._problem(event, fact, "remove it: the schema types every value", "yaml.tag"))
        return event

    def _problem(self, event: yaml.Event, fact: str, remedy: str, rule: str) -> Problem:
        return Problem("", fact, remedy, rule, self.file, event.start_mark.line + 1, event.start_mark.column + 1)


def _too_many_brackets(text: str) -> int:
    """Where more brackets are open than the reader could look ahead through in time; -1 where that is nowhere."""
    depth = 0
    for match in re.finditer(r"[\[\]{}]", text):
        depth = depth + 1 if match.group() in "[{" else max(depth - 1, 0)
        if depth > MAX_BRACKETS:
            return match.start()
    return -1


def _syntax(error: yaml.MarkedYAMLError, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    if "end of stream" in (error.problem or "") and error.context_mark:
        mark = error.context_mark  # what was never closed, rather than the end of the file
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    what = (error.problem or "not YAML").replace("\n", " ")
    if error.context == "expected a single document in the stream":
        return Problem("", "a second document begins here", "keep one per file", "yaml.documents", file, line, column)
    if "'\\t'" in what:
        return Problem("", "a tab cannot indent YAML", "indent with spaces", "yaml.tab", file, line, column)
    if "undefined alias" in what:
        return Problem("", what, "write its &anchor above it", "yaml.alias", file, line, column)
    remedy = f"{error.context} at line {error.context_mark.line + 1}" if error.context and error.context_mark else ""
    return Problem("", what, remedy or "mend the YAML", "yaml.syntax", file, line, column)


class _Builder:
    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.layer = Layer()
        self.problems = problems

    def build(self, node: yaml.Node) -> tuple[Layer | None, list[Problem]]:
        if _expanded(node, {}) > MAX_VALUES:
            at = self._at(node)
            fact = f"its aliases expand to more than {MAX_VALUES} values, or to themselves"
            bomb = Problem(
                "", fact, "write the values out, or use `extends`", "yaml.alias", at.file, at.line, at.column
            )
            return None, [*self.problems, bomb]
        self.layer.tree = self._value(node, ())
        if not isinstance(self.layer.tree, dict):
            fact = "a recipe is a mapping with `model`, `data` and `train`"
            return None, [*self.problems, self.layer.problem((), fact, "write `model:` first", "type.wrong")]
        return self.layer, self.problems

    def _at(self, node: yaml.Node) -> Place:
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def _value(self, node: yaml.Node, path: Path_) -> Tree:
        self.layer.values[path] = self._at(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*path, str(i))) for i, child in enumerate(node.value)]
        return self._mapping(node, path)

    def _scalar(self, node: yaml.ScalarNode, path: Path_) -> str | None:
        if _UNWRITABLE.search(node.value):
            self._report(path, *_ESCAPED, self._at(node))
            return POISON
        if node.style is not None:
            self.layer.quoted.add(path)
            return node.value
        return None if node.value in _NULL else node.value

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Tree]:
        tree: dict[str, Tree] = {}
        for key_node, child in node.value:
            at = self._at(key_node)
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in tree:
                first = self.layer.keys[*path, key].line
                fact = f"the key {short(key)!r} is written twice, first in line {first}"
                self._report((*path, key), fact, "keep one of the two", "yaml.duplicate", at)
                continue
            self.layer.keys[*path, key] = at
            tree[key] = self._value(child, (*path, key))
        return tree

    def _key(self, node: yaml.Node, path: Path_) -> str | None:
        at = self._at(node)
        if not isinstance(node, yaml.ScalarNode):
            self._report(path, "a list or a mapping cannot be a key", "write a name", "yaml.key", at)
            return None
        if node.style is None and node.value == "<<":
            self._report(path, "`<<` merge keys are not read", "use `extends`, or repeat the keys", "yaml.merge", at)
            return None
        if node.style is None and _NOT_A_NAME.fullmatch(node.value):
            fact = f"the key {short(node.value)!r} is not text"
            self._report(path, fact, "write a name, or put it in quotes", "yaml.key", at)
            return None
        if _UNWRITABLE.search(node.value):
            self._report(path, *_ESCAPED, at)
            return None
        return node.value

    def _report(self, path: Path_, fact: str, remedy: str, rule: str, at: Place) -> None:
        self.problems.append(Problem(".".join(path), fact, remedy, rule, at.file, at.line, at.column))


def _expanded(node: yaml.Node, sizes: dict[int, int], depth: int = 0) -> int:
    """How many values a node stands for with its aliases written out; more than allowed where it holds itself."""
    if depth > MAX_DEPTH:
        return MAX_VALUES + 1
    if id(node) not in sizes:
        sizes[id(node)] = MAX_VALUES + 1
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        inner = (c for pair in children for c in (pair if isinstance(pair, tuple) else (pair,)))
        sizes[id(node)] = min(1 + sum(_expanded(c, sizes, depth + 1) for c in inner), MAX_VALUES + 1)
    return sizes[id(node)]


def read(path: Path, shown: str) -> tuple[Layer | None, list[Problem]]:
    """The layer of one file, named `shown` in messages."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return None, [Problem("", f"cannot be read: {short(reason)}", "name a YAML file", "file.unreadable", shown)]
    return parse(data, shown)
