"""The trainer's own code, for any model family but where a name says anima.

The files here are those that sd-scripts users look for by name, and the errors that everyone raises; the rest
lives in rooms, each with a sentence of its own. docs/architecture.md is the map.
"""
