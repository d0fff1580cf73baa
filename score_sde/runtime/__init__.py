"""Run-time support: the disk, caches, processes and their progress."""
