"""Checkpoints: what a run's future depends on, written while it trains, and put back on any number of ranks."""
