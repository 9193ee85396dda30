"""Moments of an archive that words describe: `search.py`."""
