"""One layer as a tree on disk: made from a tar, dressed, verified, read, measured, made a tar again. Knows no store."""
