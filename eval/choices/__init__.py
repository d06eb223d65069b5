"""Benchmarks that compare the log-likelihoods of given texts, each with a measure of what the model can do at all."""
