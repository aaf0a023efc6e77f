"""What the operating system gives and takes: files, locks, signals, the console, a program's end.

Imports the errors only.
"""
