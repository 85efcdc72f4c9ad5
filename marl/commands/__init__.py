"""The commands of `concord`, one file each."""
