"""The contest of 2012 on one's own images: all systems on one split and one clock."""
