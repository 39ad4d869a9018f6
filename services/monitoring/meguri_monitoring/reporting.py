"""Reports of episodes and of a model's week, as a page and as JSON."""
