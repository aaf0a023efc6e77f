"""Anima's networks. Imports torch and itself, and diffusers for the VAE."""
