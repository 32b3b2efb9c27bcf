"""Where files go: their names, and writing all files of a job or none."""
