"""Video anomaly recognition around the model in anomalyclip.py: data, videos, systems to compare with, evaluation,
prediction, live streams.
"""
