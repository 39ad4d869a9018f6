"""An episode and a model's week as pages and JSON."""
