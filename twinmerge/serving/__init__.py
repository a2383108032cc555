"""Serve a causal twin folder: mixtures as LoRA adapters of stock vLLM, and an OpenAI-compatible front that routes.

Nothing here is imported before it is used: vLLM loads the plug-in alone, and the front needs the extra `serve`.
"""
