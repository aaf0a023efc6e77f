"""Adapters behind sd-scripts' contract for --network_module: the network, its files, the entry modules.

Imports settings and what is below; the entry modules alone know the family.
"""
