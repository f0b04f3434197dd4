"""Foveal: adapt, distil, serve and search with vision foundation models."""

__version__ = "0.1.0"
