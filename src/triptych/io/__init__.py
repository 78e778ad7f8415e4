"""Reading pictures and writing files."""
