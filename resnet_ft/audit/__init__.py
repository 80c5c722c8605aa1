"""What is wrong with a data set: files, classes, copies, and what to do about them."""
