"""What a checkpoint says of new videos."""
