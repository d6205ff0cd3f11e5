"""Formats of files, ours and others': read, written, checked. Bytes in, values out; knows no store."""
