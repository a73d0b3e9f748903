"""Reading the published files, and writing the two of an autoencoder as one."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmkit.errors import CheckpointError
from mmkit_taesd import layouts
from mmkit_taesd.tokenizer import TAESD, VARIANTS


def join(encoder: Path, decoder: Path, output: Path, diffusers: bool = False) -> list[str]:
    """Writes an encoder's file and a decoder's as one, tensors as they are, and gives the variants it fits.

    `diffusers` writes the names of ``AutoencoderTiny``. Raises `CheckpointError` on files that cannot be read, that do not
    belong together, that lack a tensor or hold one too many, and on an output that is there already.
    """
    if output.suffix != ".safetensors" or output.exists():
        fact = "is there already" if output.exists() else "is not named *.safetensors"
        raise CheckpointError(str(output), fact, "name another file")
    tensors = layouts.joined(read(encoder), read(decoder))
    channels, pooled = _measured(tensors, encoder, decoder)
    fitting = [name for name, form in VARIANTS.items() if form == (channels, pooled)]
    if not fitting:
        fact = f"{channels} latent channels, {'with' if pooled else 'without'} pooled blocks, is none of {', '.join(VARIANTS)}"
        raise CheckpointError(str(encoder), fact, "name the files of one of these")
    _demand_all(tensors, fitting[0], encoder, decoder)
    if diffusers and pooled:
        raise CheckpointError(str(output), "diffusers' AutoencoderTiny has no pooled blocks", "leave --diffusers out")
    _write(layouts.diffusers(tensors) if diffusers else tensors, output)
    return fitting


def _write(tensors: dict[str, Tensor], output: Path) -> None:
    """Aside first: a file that was cut short would look like a whole one."""
    aside = output.with_name(f".{output.name}-{os.getpid()}")
    try:
        save_file(tensors, aside, {"format": "pt"})
        aside.replace(output)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            str(output), f"cannot be written ({error})", "name a file in a folder that takes it"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of one published file by their names there. Of a ``.pth`` nothing but tensors is unpickled.

    Raises `CheckpointError`.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(str(path), f"cannot be read ({said})", "get the file again") from error
    if not isinstance(kept, dict) or not all(isinstance(value, Tensor) for value in kept.values()):
        raise CheckpointError(str(path), "is not a dictionary of tensors", "name a file such as taef2_encoder.pth")
    return kept


def _measured(tensors: dict[str, Tensor], encoder: Path, decoder: Path) -> tuple[int, bool]:
    """Latent channels and whether blocks are pooled, read off both halves."""
    last, first = tensors.get("encoder.14.weight"), tensors.get("decoder.1.weight")
    for path, half, found in ((encoder, "encoder", last), (decoder, "decoder", first)):
        if found is None or found.ndim != 4:
            raise CheckpointError(
                str(path), f"is not the {half} of a tiny autoencoder", "name the encoder's file first"
            )
    if last.shape[0] != first.shape[1]:
        fact = f"{encoder} writes {last.shape[0]} channels, and it reads {first.shape[1]}"
        raise CheckpointError(str(decoder), fact, "name the two files of one autoencoder")
    return last.shape[0], any(".pool." in name for name in tensors)


def _demand_all(tensors: dict[str, Tensor], variant: str, encoder: Path, decoder: Path) -> None:
    """Raises `CheckpointError` where names or shapes are not exactly those of the variant's network."""
    with torch.device("meta"):
        part = TAESD(TAESD.Config(variant=variant))
    wanted = {name: tuple(value.shape) for name, value in part.named_parameters()}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    for half, path in (("encoder", encoder), ("decoder", decoder)):
        own = {name for name in wanted.keys() | shapes.keys() if name.startswith(half)}
        wrong = sorted(name for name in own if wanted.get(name) != shapes.get(name))
        if wrong:
            told = [f"{n.removeprefix(f'{half}.')} ({_fact(wanted.get(n), shapes.get(n))})" for n in wrong[:8]]
            more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            raise CheckpointError(
                str(path), f"is not {variant}'s {half}: {', '.join(told)}{more}", "get the file again"
            )


def _fact(wanted: tuple[int, ...] | None, found: tuple[int, ...] | None) -> str:
    if found is None:
        return "missing"
    return "not of this network" if wanted is None else f"{list(found)} instead of {list(wanted)}"
