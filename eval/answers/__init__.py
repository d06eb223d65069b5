"""Reads numbers and formulas from answers, and compares them."""
