"""The second place of ILSVRC-2012: Fisher vectors of SIFT and color descriptors, with linear classifiers."""
