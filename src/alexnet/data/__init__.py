"""Images on disk → arrays of uint8. Nothing is imported here: take what you need from the files of this room."""
