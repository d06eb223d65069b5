"""The paper's published numbers, and the page that compares them."""
