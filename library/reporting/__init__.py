"""What a run was, as data: its record; the live page and the report made of it; the index of runs.

Imports saving, watching and what is below.
"""
