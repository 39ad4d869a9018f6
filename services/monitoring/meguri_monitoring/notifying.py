"""Tells people of episodes."""
