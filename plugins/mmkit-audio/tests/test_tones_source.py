"""The tones: what training never sees, and a judge that hears what is there."""

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from mmkit_audio.tones import Tones, hearing, language
from mmkit_audio.tones.sounds import PATTERNS, PITCHES, TIMBRES, Tone, World, harmonics

from mmkit.errors import ContractError, DataError

KINDS = [Tone(*kind) for kind in product(PITCHES, TIMBRES, PATTERNS)]
WORLD = World(samples=5120, rate=8000, slots=2, detune=0.03)


def play(*tones: Tone, seed: int = 0, world: World = WORLD) -> np.ndarray:
    return world.play(random.Random(seed), tones)


def right(wave: np.ndarray, *tones: Tone, world: World = WORLD) -> dict[str, bool]:
    return hearing.judge(wave, world.rate, world.slots, tones)


@pytest.mark.parametrize(
    "world", [WORLD, World(4800, 8000, 3, 0.03), World(4800, 16_000, 1, 0.1), World(9_600, 24_000, 2, 0.03)]
)
def test_what_is_played_is_heard(world):
    wrong = []
    for index in range(60):
        rng = random.Random(index)
        tones = world.compose(rng)
        if not right(world.play(rng, tones), *tones, world=world)["right"]:
            wrong.append((index, tones))
    assert not wrong


def test_every_kind_is_heard_beside_every_other():
    for place, (first, second) in enumerate(product(KINDS, KINDS)):
        assert hearing.hear(play(first, second, seed=place), 8000, 2) == (first, second)


@pytest.mark.parametrize("timbre", TIMBRES)
@pytest.mark.parametrize("pitch", [150.0, 221.7, 440.0, 903.1, 1300.0])
def test_a_pitch_is_measured_to_half_a_percent(pitch, timbre):
    amplitude = harmonics(timbre, pitch, 8000)
    turns = pitch * np.arange(800)[:, None] / 8000 * np.arange(1, len(amplitude) + 1)
    assert hearing.pitch_of(np.sin(2 * np.pi * turns) @ amplitude, 8000) == pytest.approx(pitch, rel=5e-3)


def test_each_verdict_sees_its_own_mistake():
    said = (Tone("high", "beep", "steady"), Tone("low", "buzz", "pulsing"))
    for field, name, value in (
        ("pitch", "pitches", "middle"),
        ("timbre", "timbres", "horn"),
        ("pattern", "patterns", "steady"),
    ):
        found = right(play(said[0], replace(said[1], **{field: value})), *said)
        assert [key for key, good in found.items() if not good] == ["right", name]
    fewer = right(play(said[0]), *said)
    assert not fewer["right"] and not fewer["count"]
    swapped = right(play(*said[::-1]), *said)
    assert swapped["count"] and not (swapped["pitches"] or swapped["timbres"] or swapped["patterns"])


def test_a_tone_in_the_wrong_slot_is_wrong():
    tone = Tone("low", "horn", "steady")
    late = np.roll(play(tone), 2560)
    assert right(late, tone) == {"right": False, "count": False, "pitches": True, "timbres": True, "patterns": True}


def test_noise_silence_and_broken_numbers_are_no_tones():
    tone = Tone("low", "buzz", "steady")
    noise = np.random.default_rng(0).standard_normal(5120) * 0.2
    for wave in (noise, np.zeros(5120), np.full(5120, np.nan), 1e-4 * play(tone)):
        assert not right(wave, tone)["right"]
    hidden = play(tone) * 0.2 + noise
    assert not right(hidden, tone)["right"]


def test_a_little_noise_and_another_loudness_change_nothing():
    generator = np.random.default_rng(0)
    for place, (first, second) in enumerate(zip(KINDS, KINDS[5:] + KINDS[:5], strict=True)):
        wave = 0.5 * play(first, second, seed=place) + 0.01 * generator.standard_normal(5120)
        assert right(wave, first, second)["right"]


def test_a_pitch_between_two_is_none():
    world = replace(WORLD, detune=0.0)
    between = np.sin(2 * np.pi * 220 * 2**0.5 * np.arange(5120) / 8000) * (
        play(Tone("low", "beep", "steady"), world=world) != 0
    )
    (tone, _) = hearing.hear(between, 8000, 2)
    assert tone.pitch == hearing.UNCLEAR and tone.timbre == "beep"


def test_captions_are_read_back():
    for pair in product(KINDS[::4], KINDS[::3]):
        assert language.read(language.say(pair)) == pair
    assert language.say(KINDS[:1]) == "a low beep"
    with pytest.raises(DataError, match="names no tone"):
        language.read("a loud noise")


def test_held_out_compositions_are_never_trained_on():
    source = Tones(Tones.Config())
    trained = {source.sample(i, i).facts["caption"] for i in range(600)}
    held = {source.held_out().sample(i, i).facts["caption"] for i in range(150)}
    assert not trained & held and all(", then " in said for said in held)
    # 32.4 of 324 pairs are expected, and 150 draws miss few of them.
    assert 15 < len(held) < 50


def test_a_sample_is_a_function_of_its_index_and_seed():
    first, again, other = (Tones(Tones.Config()).sample(3, seed) for seed in (1, 1, 2))
    assert first.id == again.id and torch.equal(first.segments[1].content, again.segments[1].content)
    assert not torch.equal(first.segments[1].content, other.segments[1].content)


def test_tasks_take_turns():
    source = Tones(Tones.Config(tasks=("generate", "caption")))
    assert [source.sample(i, 0).task for i in range(3)] == ["generate", "caption", "generate"]
    caption = source.sample(1, 0)
    assert [(s.modality, s.role) for s in caption.segments] == [("audio", "input"), ("text", "target")]


def test_the_source_judges_clips_and_captions():
    source = Tones(Tones.Config())
    clip, caption = source.sample(1, 0), source.sample(0, 0)
    assert all(source.judge(clip, [clip.segments[1].content]).values())
    assert all(source.judge(caption, [caption.segments[1].content]).values())
    said = caption.facts["caption"]
    assert source.judge(caption, [said + "."]) | {"right": True} == dict.fromkeys(source.judge(caption, [said]), True)
    assert not any(source.judge(caption, ["what?"]).values())


@pytest.mark.parametrize(
    ("options", "said"),
    [({"tasks": ()}, "tasks"), ({"seconds": 0.3}, "too few for 2 tones"), ({"detune": 0.5}, "an octave apart")],
)
def test_options_that_do_not_go_together_are_refused(options, said):
    with pytest.raises(ContractError, match=said):
        Tones(Tones.Config(**options))


def test_no_held_out_share_is_said():
    with pytest.raises(DataError, match="held_out"):
        Tones(Tones.Config(held_out=0.0)).held_out()
    with pytest.raises(DataError, match="no training composition"):
        Tones(Tones.Config(max_tones=1, held_out=1.0)).sample(0, 0)
