"""What was measured; each folder's README has its tables with commands."""
