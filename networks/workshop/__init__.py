"""Adapter files as things: read without a model, measured, and made anew.

On the CPU, a module at a time, so that a file of any size needs little memory.
"""
