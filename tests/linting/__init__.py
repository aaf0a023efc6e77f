"""Tests of library/linting/."""
