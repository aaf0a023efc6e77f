"""Loading Anima's files: weights, tokenizers, the family's flags.

Imports anima_backend and everything that knows no family.
"""
