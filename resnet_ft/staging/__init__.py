"""From where a data set is kept to a folder on local disk: parallel, verified, resumable."""
