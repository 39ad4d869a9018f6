"""Profiles of rows, and the reference that a version came with."""
