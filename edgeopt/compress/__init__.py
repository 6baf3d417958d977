"""Compression passes: structured pruning and int8 quantization-aware training."""
