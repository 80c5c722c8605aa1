"""What helps the accuracy of `fine_tune` where nothing was chosen: draws, variants, one run."""

DATA_SETS = ("hymenoptera", "flowers12", "signdigits10", "textures10", "waste6")
ALL = 0  # images per class: all that there are
