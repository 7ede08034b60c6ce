"""The code editor environment: repair functions of real Python files."""

from __future__ import annotations

from envkit.environments.code_editor.env import CodeEditorEnv, oracle_action
from envkit.environments.code_editor.starter import starter_tasks

__all__ = ["CodeEditorEnv", "oracle_action", "starter_tasks"]
