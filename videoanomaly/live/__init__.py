"""Watching a stream as it happens."""
