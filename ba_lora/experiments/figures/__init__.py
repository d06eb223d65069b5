"""The figures of experiments and of single runs."""
