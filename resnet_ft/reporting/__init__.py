"""One page to hand on."""
