"""The tables: rows, statistics, and their formats."""
