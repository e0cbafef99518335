"""Model files: load, convert, write. One module a format; each imports its framework late."""
