"""The ten methods: turn a model into an adapted model, save it, and load it again."""
