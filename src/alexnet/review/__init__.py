"""Review of a data set in a browser, and the choice of the images to label next."""
