"""Submissions: the files that a grader takes from an agent's sandbox, checked for tampering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envkit.errors import TooLargeError, UsageError
from envkit.sandbox import Sandbox
from envkit.types import Verdict

#: File names that graders use for their results. A candidate that writes one attempts to forge a grade.
RESERVED = ("**/reward.txt", "**/reward.json", "**/verdict.txt", "**/verdict.json", "**/junit*.xml")


class SubmissionRejected(Exception):
    """The submission gets its verdict without further grading."""

    def __init__(self, verdict: Verdict, evidence: str) -> None:
        super().__init__(evidence)
        self.verdict, self.evidence = verdict, evidence


@dataclass(frozen=True, slots=True)
class Submission:
    """The files that an environment takes from an agent's workspace.

    Args:
        files: workspace paths that the agent may change. The grader gets only these.
        protected: workspace path -> content that must be unchanged.
        reserved: patterns of `Sandbox.export` that no file but protected ones may match.
        limit_bytes: largest size of each file.
    """

    files: Sequence[str]
    protected: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    reserved: Sequence[str] = RESERVED
    limit_bytes: int = 2**18

    def collect(self, sandbox: Sandbox) -> dict[str, bytes]:
        """Read the files without following symlinks.

        Raises:
            SubmissionRejected: TAMPERED if a file is no longer a regular file, a protected one has changed
                or a reserved one is there; FAIL if one is missing or too large.
            SandboxError: the machinery failed.
        """
        reject_reserved(sandbox, self.protected, self.reserved)
        for path, given in self.protected.items():
            try:
                same = sandbox.read(path, len(given)) == given
            except (FileNotFoundError, UsageError):
                same = False
            if not same:
                raise SubmissionRejected(Verdict.TAMPERED, f"{path} was changed; it may only be read")
        return {path: self._read(sandbox, path) for path in self.files}

    def _read(self, sandbox: Sandbox, path: str) -> bytes:
        try:
            return sandbox.read(path, self.limit_bytes)
        except FileNotFoundError:
            raise SubmissionRejected(Verdict.FAIL, f"{path} is missing") from None
        except TooLargeError as error:
            raise SubmissionRejected(Verdict.FAIL, str(error)) from None
        except UsageError as error:
            raise SubmissionRejected(Verdict.TAMPERED, str(error)) from None


def reject_reserved(sandbox: Sandbox, given: Mapping[str, bytes], reserved: Sequence[str] = RESERVED) -> None:
    """Reject a workspace that holds files under reserved names.

    Args:
        sandbox: the workspace.
        given: workspace path -> content of files that the host wrote, such as samples of a suite.
        reserved: see `Submission.reserved`.

    Raises:
        SubmissionRejected: TAMPERED if there is one; FAIL if there are too many files to tell.
    """
    try:
        limit_bytes = 2**20 + sum(map(len, given.values()))
        found = sandbox.export(reserved, limit_bytes)
        forged = [path for path, data in found.items() if given.get(path) != data]
    except TooLargeError:
        forged = ["a large file"]
    except UsageError as error:
        raise SubmissionRejected(Verdict.FAIL, str(error)) from None
    if forged:
        raise SubmissionRejected(Verdict.TAMPERED, f"{forged[0]} has a name that is reserved for graders")
