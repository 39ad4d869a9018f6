"""Verdicts become episodes: opened, worse, acknowledged, resolved, and told once."""
