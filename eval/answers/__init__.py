"""Reading numbers and formulas from answers, and comparing them."""
