"""A contest of classifiers on one dataset with equal time: AlexNet, its successors and the Fisher vectors of 2012."""
