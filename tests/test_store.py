"""What tokenizers gave is found again bit for bit, by several processes at once, and never wrong."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from mmkit import store as module
from mmkit.contracts.tokenizer import Tokenizer
from mmkit.store import Store, packed, unpacked

CPU = torch.device("cpu")


class Double(Tokenizer):
    """Doubles, and counts how often it is asked."""

    keepable = True

    def __init__(self, weight: float = 2.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]), requires_grad=False)
        self.asked = 0
        self.eval()

    def encode(self, contents):
        self.asked += 1
        return [content * self.weight for content in contents]

    def decode(self, tokens):
        return [each / self.weight for each in tokens]


class Drawing(Double):
    """One that draws: it says nothing of being keepable."""

    keepable = Tokenizer.keepable


class Separate(Double):
    """One that takes its contents one after another, and tells how many it was given."""

    separable = True

    def encode(self, contents):
        self.asked += len(contents) - 1
        return super().encode(contents)


def ask(store: Store, tokenizer: Tokenizer, contents, options: str = "") -> list[torch.Tensor]:
    return store.encode(tokenizer, options, contents, CPU, tokenizer.encode)


def pictures(seed: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 4, 4, generator=generator) for _ in range(count)]


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.sqlite")
    return path


def test_what_was_given_once_is_given_again_without_asking(tmp_path):
    first, second = Double(), Double()
    given = ask(Store(tmp_path), first, pictures(0))
    again = ask(Store(tmp_path), second, pictures(0))
    assert (first.asked, second.asked) == (1, 0)
    assert all(torch.equal(a, b) for a, b in zip(given, again, strict=True)) and len(again) == 3


def test_anything_else_is_asked_for(tmp_path):
    store, base = Store(tmp_path), pictures(0)
    ask(store, Double(), base)
    other = [
        (Double(), pictures(1), ""), (Double(), base[:2], ""), (Double(), base[::-1], ""), (Double(), base, "patch: 2"),
        (Double(3.0), base, ""), (Double(), [p.double() for p in base], ""), (Double(), [p.view(3, 2, 8) for p in base], ""),
    ]  # fmt: skip
    for tokenizer, contents, options in other:
        given = ask(store, tokenizer, contents, options)
        assert tokenizer.asked == 1 and torch.equal(given[0], contents[0] * tokenizer.weight)


def test_separable_contents_are_found_in_any_batch(tmp_path):
    first, second, base = Separate(), Separate(), pictures(0)
    ask(Store(tmp_path), first, base)
    assert first.asked == 3
    given = ask(Store(tmp_path), second, [*base[::-1], *pictures(1, 1), base[0]])
    assert second.asked == 1
    expected = [p * 2 for p in (*base[::-1], *pictures(1, 1), base[0])]
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))
    assert ask(Store(tmp_path), second, []) == []


def test_another_device_precision_or_number_of_threads_is_asked_for(tmp_path, monkeypatch):
    store, tokenizer = Store(tmp_path), Double()
    ask(store, tokenizer, pictures(0))
    with torch.autocast("cpu", torch.bfloat16):
        ask(store, tokenizer, pictures(0))
    assert tokenizer.asked == 2
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    ask(store, tokenizer, pictures(0))
    ask(store, tokenizer, pictures(0))
    assert tokenizer.asked == 3


def test_weights_that_change_in_place_or_are_replaced_are_noticed(tmp_path):
    store, tokenizer = Store(tmp_path), Double()
    for number, change in enumerate([
        lambda: None,
        lambda: tokenizer.load_state_dict({"weight": torch.tensor([5.0])}),
        lambda: tokenizer.weight.mul_(2),
        lambda: setattr(tokenizer, "weight", nn.Parameter(torch.tensor([7.0]), requires_grad=False)),
    ]):  # fmt: skip
        change()
        assert torch.equal(ask(store, tokenizer, pictures(0))[1], pictures(0)[1] * tokenizer.weight)
        assert tokenizer.asked == number + 1


def test_one_that_draws_one_in_training_and_other_contents_are_never_kept(tmp_path):
    drawing, training, texts = Drawing(), Double().train(), Double()
    for _ in range(2):
        ask(Store(tmp_path), drawing, pictures(0))
        ask(Store(tmp_path), training, pictures(0))
        Store(tmp_path).encode(texts, "", ["text"], CPU, lambda _: texts.encode([torch.ones(1)]))
    assert (drawing.asked, training.asked, texts.asked) == (2, 2, 2) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).view(2, 3), torch.randn(4, 3, 2).permute(2, 0, 1), torch.randn(3, 8)[:, ::2], torch.randn(5).bfloat16(),
        torch.tensor(1.5), torch.zeros(0, 4), torch.randn(1, 3).expand(4, 3),
    ],
    ids=["codes", "permuted", "sliced", "bfloat16", "scalar", "empty", "expanded"],
)  # fmt: skip
def test_tensors_come_back_as_they_were(tensor):
    (back,) = unpacked(packed([tensor]))
    assert back.dtype == tensor.dtype and torch.equal(back, tensor)
    assert back.stride() == tensor.clone().stride()


def flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["value", "head", "cut", "other", "table"])
def test_a_damaged_file_is_told_of_and_never_believed(damage, tmp_path):
    store = Store(tmp_path)
    right = [ask(store, Double(), pictures(seed, 40)) for seed in range(4)]
    path = only(tmp_path)
    del store
    size = path.stat().st_size
    if damage == "value":
        marker = packed(right[2])[-64:]
        flipped(path, path.read_bytes().index(marker) + 30)
    elif damage == "head":
        flipped(path, 3)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: size // 2])
    elif damage == "table":
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TABLE kept")
            connection.execute("CREATE TABLE kept (something TEXT)")
    else:
        path.write_text("not a database, " * 1000)
    before = path.read_bytes()
    again, tokenizer = Store(tmp_path), Double()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            for seed in range(4):
                given = ask(again, tokenizer, pictures(seed, 40))
                assert all(torch.equal(a, b) for a, b in zip(given, right[seed], strict=True))
    (warning,) = said
    assert str(path) in str(warning.message) and "Remove it once no run uses it" in str(warning.message)
    assert tokenizer.asked and path.read_bytes() == before


def test_a_full_file_takes_nothing_more_and_says_so_once(tmp_path, monkeypatch):
    store, tokenizer = Store(tmp_path), Double()
    ask(store, tokenizer, pictures(0))
    monkeypatch.setattr(module, "LIMIT", only(tmp_path).stat().st_size + 100)
    with pytest.warns(UserWarning, match="has its full size") as said:
        for seed in (1, 2, 1, 0):
            ask(store, tokenizer, pictures(seed))
    assert len(said) == 1 and tokenizer.asked == 4  # the first one is still there


def test_a_folder_that_cannot_be_made_is_told_of(tmp_path):
    (tmp_path / "a file").write_text("")
    tokenizer = Double()
    with pytest.warns(UserWarning, match="computed again"):
        given = ask(Store(tmp_path / "a file" / "tokens"), tokenizer, pictures(0))
    assert tokenizer.asked == 1 and torch.equal(given[0], pictures(0)[0] * 2)


def test_while_another_process_holds_the_file_it_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    ask(Store(tmp_path), Double(), pictures(0))
    other = sqlite3.connect(only(tmp_path), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    store, tokenizer = Store(tmp_path), Double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(store, tokenizer, pictures(0))
        other.execute("ROLLBACK")
        ask(store, tokenizer, pictures(0))
    assert tokenizer.asked == 1


PROGRAM = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_store import Double, ask, pictures
from mmkit.store import Store
store, tokenizer = Store(Path(sys.argv[1])), Double()
print("ready", flush=True)
sys.stdin.readline()
for seed in range(int(sys.argv[3]), int(sys.argv[4])):
    given = ask(store, tokenizer, pictures(seed, 20))
    assert torch.equal(given[7], pictures(seed, 20)[7] * 2)
print("asked", tokenizer.asked, flush=True)
"""


def writer(folder: Path, start: int, stop: int) -> subprocess.Popen:
    """A process that keeps what it gives for many contents, once it is told to begin."""
    program = [sys.executable, "-c", PROGRAM, str(folder), str(Path(__file__).parent), str(start), str(stop)]
    return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def count(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT count(*) FROM kept").fetchone()[0]


@pytest.mark.slow
def test_two_processes_at_once_keep_everything(tmp_path):
    both = [writer(tmp_path, 0, 200), writer(tmp_path, 100, 300)]
    assert all(each.stdout.readline() == "ready\n" for each in both)
    for each in both:
        each.stdin.write("go\n")
        each.stdin.flush()
    asked = [int(each.communicate(timeout=100)[0].split()[1]) for each in both]
    assert all(each.returncode == 0 for each in both)
    assert count(only(tmp_path)) == 300 and 300 <= sum(asked) <= 400
    tokenizer = Double()
    store = Store(tmp_path)
    for seed in range(300):
        ask(store, tokenizer, pictures(seed, 20))
    assert tokenizer.asked == 0


FORKED = """
import os, sys, torch
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_store import Double, ask, pictures
from mmkit.store import Store
for number in range(20):
    reader, told = os.pipe()
    child = os.fork()
    if not child:
        store, tokenizer = Store(Path(sys.argv[1])), Double()
        for seed in range(1000 * number, 1000 * number + 1000):
            ask(store, tokenizer, pictures(seed, 20))
            os.write(told, seed.to_bytes(4, "big"))
        os._exit(1)
    os.close(told)
    seeds = os.read(reader, 4) if number % 5 else b""
    print(child, flush=True)
    sys.stdin.readline()
    os.waitpid(child, 0)
    while data := os.read(reader, 65536):
        seeds += data
    print(len(seeds) // 4, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_keeps_what_was_kept(tmp_path):
    """Twenty writers, each fifth killed as it begins, the others in the middle of their work; what each had kept is there."""
    program = [sys.executable, "-c", FORKED, str(tmp_path), str(Path(__file__).parent)]
    chance = random.Random(0)
    kept = []
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(20):
            child = int(process.stdout.readline())
            time.sleep(chance.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
            process.stdin.write("killed\n")
            process.stdin.flush()
            kept.append(int(process.stdout.readline()))
    assert sum(map(bool, kept)) >= 16 and max(kept) < 1000, kept
    store, tokenizer = Store(tmp_path), Double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, upto in enumerate(kept):
            for seed in range(1000 * number, 1000 * number + upto):
                given = ask(store, tokenizer, pictures(seed, 20))
                assert torch.equal(given[19], pictures(seed, 20)[19] * 2)
    assert tokenizer.asked == 0
    assert sum(kept) <= count(only(tmp_path)) <= sum(kept) + 20
