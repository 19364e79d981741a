"""Data sets that need no download."""

from steer.data import emoji

__all__ = ["emoji"]
