"""Files that are whole or not there, tensors in them, the user's cache directory, and errors of reading."""
