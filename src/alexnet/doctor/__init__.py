"""What is wrong with a data set, before a day of training. Nothing is imported here and nothing is changed by it."""
