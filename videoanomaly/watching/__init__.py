"""The service that watches cameras for months: `watch.py`."""
