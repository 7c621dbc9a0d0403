"""Numbers and networks -> images. Every drawing is a function from arrays to a PNG file, and returns its path.

Nothing here knows a network, a run or a screen. matplotlib is imported when something is drawn, never before.
"""
