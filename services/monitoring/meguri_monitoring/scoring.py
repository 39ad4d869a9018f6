"""Joins labels to predictions, however late they are, and watches the errors."""
