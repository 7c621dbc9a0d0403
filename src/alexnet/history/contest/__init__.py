"""The contest of 2012 on one's own pictures: all systems on one split and one clock."""
