"""Bringing a data set to local disk: in parallel, verified, resumable."""
