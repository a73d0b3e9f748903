"""Models of diffusers as parts of mmkit."""
