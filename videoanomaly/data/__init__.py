"""Data sets: lists, annotations, feature files and training samples."""
