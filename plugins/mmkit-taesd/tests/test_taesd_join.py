"""Two published files become one, or are refused by name."""

from __future__ import annotations

import pickle

import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderTiny
from mmkit_taesd.files import join
from mmkit_taesd.join import command
from safetensors.torch import load_file, save_file
from taesd_files import halves, tokenizer, written

from mmkit.checkpoint.weights import load_part
from mmkit.errors import CheckpointError


@pytest.mark.parametrize(
    ("variant", "fitting"),
    [("taesd", ["taesd", "taesdxl"]), ("taef1", ["taesd3", "taef1"]), ("taef2", ["taef2"])],
)
def test_what_is_joined_loads_to_the_same_numbers(variant, fitting, tmp_path):
    parts = halves(variant)
    output = tmp_path / "whole.safetensors"
    assert join(*written(parts, tmp_path), output) == fitting
    part = tokenizer(variant, scale=1.0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.zero_()
    load_part(part, str(output), "tokenizers.pixels")
    loaded = dict(part.named_parameters())
    assert sum(map(len, parts.values())) == len(loaded)
    for half, tensors in parts.items():
        assert all(torch.equal(loaded[f"{half}.{name}"].half(), value) for name, value in tensors.items())


def test_safetensors_are_read_and_diffusers_loads_what_is_written_for_it(tmp_path):
    parts = halves("taesd3")
    for half, tensors in parts.items():
        save_file(tensors, tmp_path / f"{half}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("encoder", "decoder", "whole")]
    told = CliRunner().invoke(command, [*files, "--diffusers"], catch_exceptions=False)
    assert told.output == f"wrote {files[2]}, for `variant: taesd3 or taef1`\n"
    theirs = AutoencoderTiny(latent_channels=16)
    theirs.load_state_dict(load_file(files[2]))
    assert torch.equal(theirs.encoder.layers[0].weight.half(), parts["encoder"]["0.weight"])
    assert torch.equal(theirs.decoder.layers[0].weight.half(), parts["decoder"]["1.weight"])


def test_a_half_is_no_tokenizer(tmp_path):
    save_file(halves("taesd")["encoder"], tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match=r"encoder or a decoder alone.* mmkit taesd-join"):
        load_part(tokenizer("taesd"), str(tmp_path / "half.safetensors"), "tokenizers.pixels")


def without(name):
    return lambda tensors: tensors.pop(name)


DAMAGE = {
    "missing": ("decoder", without("19.bias"), r"a_decoder.pth: is not taef2's decoder: 19\.bias \(missing\)"),
    "more": (
        "encoder",
        lambda t: t.update({"15.weight": torch.zeros(3)}),
        r"an_encoder.pth: is not taef2's encoder: 15\.weight \(not of this network\)",
    ),
    "shape": (
        "encoder",
        lambda t: t.update({"0.bias": torch.zeros(3)}),
        r"0\.bias \(\[3\] instead of \[64\]\)",
    ),
    "no pool": (
        "encoder",
        lambda t: [t.pop(name) for name in [*t] if ".pool." in name],
        r"an_encoder.pth: is not taef2's encoder: 11\.pool\.0\.weight \(missing\).* and 4 more",
    ),
    "another": ("encoder", without("14.weight"), "an_encoder.pth: is not the encoder of a tiny autoencoder"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_does_not_fit_is_refused_by_name(kind, tmp_path):
    half, damage, said = DAMAGE[kind]
    parts = halves("taef2")
    damage(parts[half])
    with pytest.raises(CheckpointError, match=said):
        join(*written(parts, tmp_path), tmp_path / "whole.safetensors")
    assert not (tmp_path / "whole.safetensors").exists()


def test_files_in_the_wrong_order_and_of_two_autoencoders(tmp_path):
    encoder, decoder = written(halves("taesd"), tmp_path)
    with pytest.raises(CheckpointError, match=r"a_decoder\.pth: is not the encoder .* name the encoder's file first"):
        join(decoder, encoder, tmp_path / "whole.safetensors")
    torch.save(halves("taef1")["decoder"], decoder)
    with pytest.raises(CheckpointError, match=r"a_decoder\.pth: .* writes 4 channels, and it reads 16"):
        join(encoder, decoder, tmp_path / "whole.safetensors")
    parts = halves("taesd")
    parts["encoder"]["14.weight"], parts["decoder"]["1.weight"] = torch.zeros(5, 64, 3, 3), torch.zeros(64, 5, 3, 3)
    with pytest.raises(CheckpointError, match="5 latent channels, without pooled blocks, is none of taesd, "):
        join(*written(parts, tmp_path), tmp_path / "whole.safetensors")


class Evil:
    """Would write a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_pickle_runs_code(tmp_path):
    encoder, decoder = written(halves("taesd"), tmp_path)
    encoder.write_bytes(pickle.dumps({"0.weight": Evil(tmp_path / "ran")}))
    with pytest.raises(CheckpointError, match=r"an_encoder\.pth: cannot be read"):
        join(encoder, decoder, tmp_path / "whole.safetensors")
    torch.save({"0.weight": Evil(tmp_path / "ran")}, encoder)
    with pytest.raises(CheckpointError, match=r"an_encoder\.pth: cannot be read"):
        join(encoder, decoder, tmp_path / "whole.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_what_is_no_file_of_tensors_is_refused(content, tmp_path):
    encoder, decoder = written(halves("taesd"), tmp_path)
    if content is None:
        torch.save([torch.zeros(2)], encoder)
    else:
        encoder.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"an_encoder\.pth: (cannot be read|is not a dictionary of tensors)"):
        join(encoder, decoder, tmp_path / "whole.safetensors")
    encoder.unlink()
    with pytest.raises(CheckpointError, match=r"an_encoder\.pth: cannot be read \(.*No such file"):
        join(encoder, decoder, tmp_path / "whole.safetensors")


def test_nothing_is_written_over_and_taef2_has_no_form_in_diffusers(tmp_path):
    files = written(halves("taef2"), tmp_path)
    output = tmp_path / "whole.safetensors"
    output.write_text("mine")
    with pytest.raises(CheckpointError, match="is there already"):
        join(*files, output)
    assert output.read_text() == "mine"
    with pytest.raises(CheckpointError, match=r"is not named \*\.safetensors"):
        join(*files, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match="has no pooled blocks"):
        join(*files, tmp_path / "other.safetensors", diffusers=True)


def test_a_folder_that_is_not_there_is_named_and_a_cut_off_file_is_not_left(tmp_path, monkeypatch):
    files = written(halves("taef2"), tmp_path)
    with pytest.raises(CheckpointError, match=r"whole\.safetensors: cannot be written"):
        join(*files, tmp_path / "nowhere" / "whole.safetensors")

    def cut_off(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr("mmkit_taesd.files.save_file", cut_off)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="no space left"):
        join(*files, tmp_path / "whole.safetensors")
    assert sorted(tmp_path.iterdir()) == before
