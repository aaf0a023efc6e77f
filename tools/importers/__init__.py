"""Configurations of other trainers as tables of rules, one file a program, and what applies them."""
