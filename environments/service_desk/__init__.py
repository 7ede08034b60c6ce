"""The service desk: an HTTP service that is slow to come up and answers only to those with its token."""

from __future__ import annotations

from envkit.environments.service_desk.env import ServiceDeskEnv

__all__ = ["ServiceDeskEnv"]
