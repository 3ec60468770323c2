"""compatd: a drop-in for dockerd with its own builder and its own namespace runtime."""

__version__ = "0.1.0"
