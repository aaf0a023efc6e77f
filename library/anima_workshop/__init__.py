"""Adapter files for Anima: what is in them, how strong they are, who reads them; made from one another.

The arithmetic is in `networks/workshop/` and knows no family; here are Anima's names, its base models,
and what a person is told.
"""
