"""Sandbox backends: four ways to run code, three of which isolate it.

One module per backend: `process` (no isolation), `bubblewrap`, `zygote`, `docker`. Their parts:

- ``_sandbox.py``, ``_supervisor.py``: shared by all backends: files and snapshots; running a command to its
  end under limits.
- ``_linux/``: kernel mechanisms: bubblewrap, control groups, system call filters, processes.
- ``_rootfs/``: the root file system that sandboxed code sees.
- ``_workspace/``: workspaces of a fixed size, and safe access to the files in them.
- ``_zygote/``, ``_docker/``: parts of those backends.

A file named ``guest*.py`` is a program that runs in another process: in a sandbox, in a container or as a
helper. It cannot import other files of this package, so it uses only the standard library.
"""
