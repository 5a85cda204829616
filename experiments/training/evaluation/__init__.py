"""Accuracy and loss of a state, on the data and on other domains, with stored or recomputed statistics."""
