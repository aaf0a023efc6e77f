"""What is worth mending in pictures and captions: found and told, never changed.

Knows no family; imports what reads pictures and captions, and the page that all reports share.
"""
