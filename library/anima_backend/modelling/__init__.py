"""The DiT with its LLM adapter, part by part, and the VAE."""
