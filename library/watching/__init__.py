"""What a run says while it runs: the bar, trackers, the monitor, validation.

Imports training, data, train_util and what is below.
"""
