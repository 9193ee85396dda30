"""What any script needs of the machine it runs on; nothing here knows of videos."""
