"""Linux mechanisms that several backends use: bubblewrap, control groups, system call filters, processes."""
