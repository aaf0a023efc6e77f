"""From folders and dataset.toml to samples and batches.

Imports settings and what is below; stored encoder outputs reach it through the protocols of stored.py.
"""
