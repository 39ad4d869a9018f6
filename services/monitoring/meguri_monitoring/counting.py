"""Windows counted and judged, by any replica: the second half of what becomes of predictions."""
