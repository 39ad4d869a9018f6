"""Plug-ins that make business numbers of predictions, their tables, and monitors on these."""
