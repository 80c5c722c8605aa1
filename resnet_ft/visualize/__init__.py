"""Figures of images, predictions and scores, in one look."""
