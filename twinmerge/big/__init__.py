"""Merging checkpoints that are larger than the memory: planned from headers, read and written block by block."""
