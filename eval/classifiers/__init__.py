"""Classifiers on GLUE and GLUE-X: predictions and metrics."""
