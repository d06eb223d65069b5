"""Experiments: a YAML file → runs → results → tables. Each run is the plain command in its own folder."""
