"""Video files: frames, features and pictures."""
