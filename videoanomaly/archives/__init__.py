"""Archives too long to encode whole: a look at key frames, then a full one where something stands out."""
