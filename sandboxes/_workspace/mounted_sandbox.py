"""What the backends share whose workspaces are file systems of a size, mounted one by one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from envkit.errors import TooLargeError
from envkit.sandbox import Quota
from envkit.sandboxes._sandbox import FolderSandbox, Snapshot
from envkit.sandboxes._workspace.files import PAGE_BYTES, File, Workspace
from envkit.sandboxes._workspace.mounts import Mount, SnapshotLayer, shared_mounts

#: A snapshot is laid beneath workspaces if it takes no more than one of so many parts of their space. The
#: rest is enough to change or delete all of it.
_PARTS: Final = 4


class MountedSandbox(FolderSandbox):
    """A sandbox whose workspace is a mount. To begin anew it takes another, and leaves the old one as it is.

    A snapshot is laid beneath, if it takes no more than a quarter of the space: it counts in full there, and
    each of its files that changes counts once more. Others are copied, and all are where this machine cannot
    lay one file system over another.

    Args:
        user: host user that sandboxed code runs as.
        quota: what the workspace may hold.
    """

    def __init__(self, user: int, quota: Quota) -> None:
        self._owner, self._quota = user if user != os.geteuid() else None, quota
        self._mount = shared_mounts(os.getpid(), user).mount(quota)
        super().__init__(self._workspace_in(self._mount))

    def _take_snapshot(self) -> Snapshot:
        kept = super()._take_snapshot()
        layer = self._layer(kept.files)
        return kept if layer is None else Snapshot({}, layer)

    def _restore(self, snapshot: Snapshot) -> None:
        lower = None if snapshot.layer is None else snapshot.layer.place
        # Of the one who has mounted what lies beneath: names are of no use to another.
        fresh = (lower or self._mount).helper.mount(self._quota, lower)
        old, self._mount = self._mount, fresh
        self._workspace.close()
        self._workspace = self._workspace_in(self._mount)
        old.close()
        self._workspace.fill(snapshot.files)

    def _remove_workspace(self) -> None:
        self._mount.close()

    def _workspace_in(self, place: Mount) -> Workspace:
        return Workspace(place.root, self._owner, self._quota)

    def _layer(self, files: Mapping[str, File]) -> SnapshotLayer | None:
        """One with these files; ``None`` where they are to be copied instead."""
        total_bytes, count = self._quota.total_bytes // _PARTS, self._quota.files // _PARTS
        if total_bytes < PAGE_BYTES or count < 2 or self._mount.helper.copies is not None:
            return None
        part = Quota(total_bytes, count)
        place = self._mount.helper.mount(part)
        workspace = Workspace(place.root, self._owner, part)
        try:
            workspace.fill(files)
            place.freeze()
        except TooLargeError:
            place.close()
            return None
        except BaseException:
            place.close()
            raise
        finally:
            workspace.close()
        return SnapshotLayer(place)
