"""Who made a folder, what belongs in it, and whether its files are as they were written."""
