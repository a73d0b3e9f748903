"""The tiny autoencoders of github.com/madebyollin/taesd as tokenizers of mmkit."""
