"""A rendered world of 309 videos and a CLIP that was trained on it."""
