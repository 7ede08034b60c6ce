"""The service desk: an HTTP service that starts slowly and answers only requests with its token."""

from __future__ import annotations

from envkit.environments.service_desk.env import ServiceDeskEnv

__all__ = ["ServiceDeskEnv"]
