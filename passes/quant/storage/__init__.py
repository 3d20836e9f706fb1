"""Weights alone, in a few bits."""
