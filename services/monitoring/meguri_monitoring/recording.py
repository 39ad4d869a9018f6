"""Predictions into tables, and windows planned: the first half of what becomes of them."""
