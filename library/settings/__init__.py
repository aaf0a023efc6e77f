"""What the user may write: flags and dataset keys, one declaration each, and reading train_args.toml.

Imports system and utils; never torch.
"""
