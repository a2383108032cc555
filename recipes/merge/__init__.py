"""Merging fine-tunes: `merge`, `finetune` that makes experts, `export` that converts the result."""
