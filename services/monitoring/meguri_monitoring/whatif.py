"""Recomputes a past episode from the predictions that are kept, under another rule."""
