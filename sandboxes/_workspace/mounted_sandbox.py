"""The base of sandboxes whose workspace is a mounted file system of a fixed size."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from envkit.errors import TooLargeError
from envkit.sandbox import Quota
from envkit.sandboxes._sandbox import FolderSandbox, Snapshot
from envkit.sandboxes._workspace.files import PAGE_BYTES, File, Workspace
from envkit.sandboxes._workspace.mounts import Mount, SnapshotLayer, shared_mounts

#: A snapshot is mounted as a layer beneath workspaces if it takes at most this fraction of the quota. The
#: rest of the quota is then enough to change or delete every file of it.
_LAYER_FRACTION: Final = 4


class MountedSandbox(FolderSandbox):
    """A sandbox whose workspace is a mount. `reset` replaces the mount instead of emptying it.

    A snapshot of at most a quarter of the quota is mounted as a read-only layer beneath workspaces, by
    overlayfs. It counts in full against the quota, and each of its files that changes counts once more.
    Larger snapshots are copied. So are all snapshots if this machine has no usable overlayfs.

    Args:
        user: host user that sandboxed code runs as.
        quota: limit of the workspace.
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
        lower = None if snapshot.layer is None else snapshot.layer.mount
        # By the helper that mounted the layer, because another helper knows no mount of that name.
        fresh = (lower or self._mount).helper.mount(self._quota, lower)
        old, self._mount = self._mount, fresh
        self._workspace.close()
        self._workspace = self._workspace_in(self._mount)
        old.close()
        self._workspace.fill(snapshot.files)

    def _remove_workspace(self) -> None:
        self._mount.close()

    def _workspace_in(self, mount: Mount) -> Workspace:
        return Workspace(mount.root, self._owner, self._quota)

    def _layer(self, files: Mapping[str, File]) -> SnapshotLayer | None:
        """A layer with these files; ``None`` if they are to be copied instead."""
        total_bytes, count = self._quota.total_bytes // _LAYER_FRACTION, self._quota.files // _LAYER_FRACTION
        if total_bytes < PAGE_BYTES or count < 2 or self._mount.helper.copies is not None:
            return None
        part = Quota(total_bytes, count)
        mount = self._mount.helper.mount(part)
        workspace = Workspace(mount.root, self._owner, part)
        try:
            workspace.fill(files)
            mount.freeze()
        except TooLargeError:
            mount.close()
            return None
        except BaseException:
            mount.close()
            raise
        finally:
            workspace.close()
        return SnapshotLayer(mount)
