"""Measurements of a finished run."""
