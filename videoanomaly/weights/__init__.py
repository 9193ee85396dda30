"""Checkpoints: ours, the authors', and models for other programs."""
