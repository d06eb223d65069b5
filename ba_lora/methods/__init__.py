"""The ten methods: from a model to an adapted model, to its files, and back."""
