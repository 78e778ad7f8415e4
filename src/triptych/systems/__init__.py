"""The three papers, one file each; every equation is tagged at its line."""
