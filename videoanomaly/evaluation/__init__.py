"""How well a checkpoint does on its test videos."""
