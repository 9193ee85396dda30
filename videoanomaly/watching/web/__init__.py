"""The page, /healthz and /metrics."""
