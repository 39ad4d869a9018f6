"""Labels joined to predictions however late, and how right the answers were."""
