"""The tests; those of the model alone are in test_anomalyclip.py beside it."""
