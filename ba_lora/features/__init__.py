"""The last hidden layer over training: saved features, their t-SNE maps and the figures."""
