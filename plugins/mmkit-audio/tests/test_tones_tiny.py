"""The recipes, as a user runs them: trained, evaluated, continued from files."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmkit_audio.waveform import Audio

import mmkit
from mmkit.cli import main
from mmkit.compose import check, load, loads
from mmkit.contracts.segment import Segment
from mmkit.errors import DataError
from mmkit.evaluate.judging import evaluate, subject_of, tasks_of
from mmkit.train import train

README = Path(__file__).parent.parent / "README.md"
QUICK = (
    "train.steps=2", "train.batch_samples=4", "train.warmup=1", "train.reconstruction.steps=2",
    "model.tokenizers.text={type: bytes}", "model.tokenizers.codec.base_dim=8", "model.tokenizers.codec.codebook_size=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tones") / "run"
    train(load("tones-tiny", (*QUICK, "model.backbone.depth=1", "model.backbone.dim=32")), folder, quiet=True)
    return folder


def test_the_recipe_of_the_readme_is_right():
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    check(loads(block))


def test_it_is_judged_by_what_is_heard(run):
    subject = subject_of(run, 2)
    figures = evaluate(subject, tasks_of(subject.recipe)).figures
    assert {"right", "pitches", "timbres", "patterns", "count", "log_mel_distance"} <= figures["generate"].keys()
    assert {"right", "count"} <= figures["caption"].keys() and "log_mel_distance" not in figures["caption"]
    assert {"right", "si_sdr", "codebook_use"} <= figures["reconstruction"].keys()


def test_the_report_plays_what_was_heard_and_what_was_generated(run):
    main(["eval", str(run), "--per-task", "1", "evaluate=[held_out]"], standalone_mode=False)
    # One sound that is captioned, and one that is generated.
    assert (run / "report.html").read_text().count('<audio controls src="data:audio/wav;base64,') == 2


def test_each_sample_is_what_it_is_alone(run):
    model = mmkit.load(run)
    prompts = [
        ["a low beep", Segment("audio", None, "target", size=(3200,))],
        ["a high buzz", Segment("audio", None, "target")],
    ]
    together = model.generate_batch(prompts, seeds=[3, 4])
    for prompt, seed, (found,) in zip(prompts, (3, 4), together, strict=True):
        assert torch.equal(model.generate(prompt, seed=seed)[0], found)
    # The size where none is given is that of training.
    assert [found.shape for (found,) in together] == [(3200,), (5120,)]


def test_a_blank_of_unknown_length_says_how_to_give_one(run):
    model = mmkit.load(run)
    model.sizes = {}
    with pytest.raises(DataError, match=r"mmkit\.Segment\('audio', None, 'target', size="):
        model.generate(["a low beep", Segment("audio", None, "target")])


def test_files_go_in_and_come_out_at_the_command_line(run, tmp_path, capsys):
    Audio().save(torch.rand(5120) - 0.5, tmp_path / "heard.wav")
    main(["generate", str(run), str(tmp_path / "heard.wav"), "--text"], standalone_mode=False)
    main(
        ["generate", str(run), "a low beep", "--blank", "audio", "--output", str(tmp_path / "out")],
        standalone_mode=False,
    )
    assert Audio().coerce(tmp_path / "out" / "0000.wav").shape == (5120,)


def test_a_masked_head_swaps_in(tmp_path):
    masked = (*QUICK, "model.backbone.depth=1", "model.backbone.dim=32", "model.heads.play={type: masked, steps: 3}")
    train(load("tones-tiny", masked), tmp_path / "run", quiet=True)
    (sound,) = mmkit.load(tmp_path / "run").generate(["a low beep", Segment("audio", None, "target")])
    assert sound.shape == (5120,) and sound.abs().max() <= 1


def test_the_codec_trains_alone_and_keeps_its_bits(tmp_path):
    train(load("codec-tiny", [o for o in QUICK if "text" not in o]), tmp_path / "run", quiet=True)
    first, second = (subject_of(tmp_path / "run", 1).tokenizers["codec"] for _ in range(2))
    sound = torch.rand(1600) - 0.5
    assert torch.equal(first.encode([sound])[0], second.encode([sound])[0])
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"codec.l1", "codec.spectral", "codec.commitment", "codec.codebook_use"} <= rows[-1].keys()
