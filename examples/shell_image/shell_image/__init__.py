"""A Docker image as an application: the shell of a container."""

from shell_image.env import Shell

__all__ = ["Shell"]
