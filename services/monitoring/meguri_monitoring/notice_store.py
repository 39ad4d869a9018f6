"""Table of who was told of which episode."""
