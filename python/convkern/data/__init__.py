"""Data: images from files."""

from .images import load_image

__all__ = ["load_image"]
