"""Encoder outputs that are kept: latents and texts, in memory or in files with fingerprints.

Imports data, strategy_base and what is below.
"""
