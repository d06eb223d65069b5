"""The last hidden layer during training: saved features, their t-SNE maps and the figures."""
