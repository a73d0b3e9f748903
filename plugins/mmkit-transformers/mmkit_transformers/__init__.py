"""Decoders, vision towers and tokenizers of the transformers library as parts of mmkit. Nothing is ever fetched."""
