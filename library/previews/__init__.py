"""Pictures drawn during training, as ComfyUI draws them: prompts, sigmas, samplers, noise.

Imports saving and what is below.
"""
