"""Where weights and activations are: what the backward pass keeps, computes again or fetches.

The mechanisms know no model family and import torch only; what plans with them, and counts what a step
costs, stands higher.
"""
