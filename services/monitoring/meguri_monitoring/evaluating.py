"""Runs evaluators on predictions, and keeps and watches their numbers."""
