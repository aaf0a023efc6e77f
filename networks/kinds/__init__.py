"""The kinds of adapters: one file a kind, and `table.KINDS`, which has one row for each.

A kind's file holds its algebra, the holder of its factors and what its files look like. What all
share is in `adapter`, `linear`, `stored` and `kind`. Imports torch and the ground floors of
`library`; the rest of `networks` imports it and names no kind but the norms.
"""
