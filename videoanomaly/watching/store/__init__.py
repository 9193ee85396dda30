"""What stays: events and messages in SQLite."""
