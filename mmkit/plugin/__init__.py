"""For authors of plugins: a package to begin with, and what mmkit has to say about one."""
