"""Rows become windows, windows are shared out in parts, counted from the tables and put together."""
