"""What inference says it answered, kept: read from the broker, written to tables, shown again."""
