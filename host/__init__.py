"""What drives the kernels: files, clocks, threads and the terminal."""

VERSION = "0.1.0"  # as in pyproject.toml
