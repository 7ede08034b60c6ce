"""What passes from an agent's sandbox to the grader's: named regular files, none of them tampered with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envkit.errors import TooLargeError, UsageError
from envkit.sandbox import Sandbox
from envkit.types import Verdict

#: Names under which graders keep what they found. Whoever writes one means to be taken for the grader.
RESERVED = ("**/reward.txt", "**/reward.json", "**/verdict.txt", "**/verdict.json", "**/junit*.xml")


class SubmissionRejected(Exception):
    """A workspace that is graded no further, with the verdict and its evidence."""

    def __init__(self, verdict: Verdict, evidence: str) -> None:
        super().__init__(evidence)
        self.verdict, self.evidence = verdict, evidence


@dataclass(frozen=True, slots=True)
class Submission:
    """What an environment takes from an agent's workspace.

    Args:
        files: workspace paths that the agent may change; all that the grader gets.
        protected: workspace path -> the bytes that must still be there.
        reserved: patterns, as of `Sandbox.export`, that only ``protected`` files may match.
        limit_bytes: of each file.
    """

    files: Sequence[str]
    protected: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    reserved: Sequence[str] = RESERVED
    limit_bytes: int = 2**18

    def collect(self, sandbox: Sandbox) -> dict[str, bytes]:
        """The files, read without following a symlink.

        Raises:
            SubmissionRejected: TAMPERED if a file is no longer a regular file, a protected one has changed
                or a reserved one is there; FAIL where one is missing or too large.
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
    """See `Submission.reserved`.

    Args:
        given: what the host has written itself, workspace path -> content, such as a suite's own samples.

    Raises:
        SubmissionRejected: TAMPERED where one is there; FAIL where there are too many files to tell.
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
        raise SubmissionRejected(
            Verdict.TAMPERED, f"{forged[0]} was written under a name that is the grader's"
        )
