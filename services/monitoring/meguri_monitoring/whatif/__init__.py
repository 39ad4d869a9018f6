"""A past episode worked out again with another rule, beside what is live."""
