"""``mmkit taesd-join``: the two files of a published autoencoder as one that `weights:` can name."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    name="taesd-join",
    short_help="The two files of a tiny autoencoder as one.",
    epilog="Example: mmkit taesd-join taef2_encoder.pth taef2_decoder.pth taef2.safetensors",
)
@click.argument("encoder", type=click.Path(path_type=Path))
@click.argument("decoder", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--diffusers", is_flag=True, help="By the names of diffusers' AutoencoderTiny (not taef2).")
def command(encoder: Path, decoder: Path, output: Path, diffusers: bool) -> None:
    """Write the two files of a tiny autoencoder (.pth or .safetensors), ENCODER and DECODER, as one safetensors file.

    Nothing but tensors is read of a .pth file. What is missing or too much is refused by name.
    """
    from mmkit_taesd.files import join

    variants = join(encoder, decoder, output, diffusers)
    click.echo(f"wrote {output}, for `variant: {' or '.join(variants)}`")
