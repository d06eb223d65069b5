"""Tables: rows, statistics and formats."""
