"""Pruning to a measured latency: widths sliced, timed before any training, predicted and chosen."""
