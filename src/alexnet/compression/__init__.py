"""Weights made small: pruned, shared, in whole numbers, in Huffman codes; and the file that holds them."""
