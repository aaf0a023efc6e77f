"""The report on a run that is not started: what would happen, and every problem.

Imports anima_runtime, strategy_anima and everything that knows no family.
"""
