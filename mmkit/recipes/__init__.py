"""The zoo: recipes shipped with mmkit, named by their file."""
