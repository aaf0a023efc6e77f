"""What a run leaves and goes on from: adapters, metadata, states, and how a run is stopped.

Imports watching and what is below.
"""
