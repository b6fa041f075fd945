"""Adapters: LoRA, and a base frozen in 4 bits under them."""
