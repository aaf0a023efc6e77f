"""What makes an update: the path from image to noise, the loss, optimizer and schedule.

Imports settings and what is below, and the networks' contract.
"""
