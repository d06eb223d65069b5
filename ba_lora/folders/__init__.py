"""Origin and content of a project folder, and checks that its files are as they were written."""
