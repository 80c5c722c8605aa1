"""From files to batches of tensors."""
