"""The options of a training run by topic: names, types, defaults and help texts. arguments.py joins and checks them."""
