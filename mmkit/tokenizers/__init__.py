"""Tokenizers: content to codes or latents, and back. One file each."""

from mmkit.hooks import Register, hookimpl

CATALOGUE = {
    "bytes": "mmkit.tokenizers.bytes:Bytes",
    "fsq": "mmkit.tokenizers.fsq:FSQ",
    "kl_vae": "mmkit.tokenizers.kl_vae:KLVAE",
    "pixel": "mmkit.tokenizers.pixel:Pixel",
    "sentencepiece": "mmkit.tokenizers.sentencepiece:SentencePiece",
    "vq": "mmkit.tokenizers.vq:VQ",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's parts."""
    for name, target in CATALOGUE.items():
        register("tokenizer", name, target)
