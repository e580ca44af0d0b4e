"""What only a GPU shows: `python tests/gpu/run.py`. See README.md."""
