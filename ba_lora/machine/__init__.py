"""The machine that a command runs on: the device it computes on, and the NVIDIA driver. Imports no large library by itself."""
