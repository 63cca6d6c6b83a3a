"""Scores of a trained model: what is drawn, features that are kept, figures with their protocol."""
