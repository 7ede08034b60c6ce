"""What all rooms stand on: files, run folders, leases, progress, plugins, prices."""
