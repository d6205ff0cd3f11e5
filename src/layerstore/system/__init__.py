"""What the machine gives: every effect on the disk, the kernel's calls, fault points, privileges, threads."""
