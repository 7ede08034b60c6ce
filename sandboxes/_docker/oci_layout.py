"""OCI image layouts: folders that hold an image, loaded into the engine without a registry.

See https://github.com/opencontainers/image-spec/blob/main/image-layout.md. Engines before Docker 25 load only
Docker's own archives, so the layout is packed as one; the blobs stay as they are.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from envkit.errors import ConfigError

_REPOSITORY: Final = "envkit-oci-layout"
_DIGEST: Final = re.compile(r"(sha256|sha512):([0-9a-f]{64,128})")
#: Indexes in indexes that are followed; one is usual.
_MAX_DEPTH: Final = 3


def load(client: Any, folder: Path) -> str:
    """Load the image of a layout, unless the engine has it; returns its tag.

    Args:
        client: the Docker client.
        folder: the layout. It holds one image, for several platforms perhaps.

    Raises:
        ConfigError: it is no layout, or not of one image for the engine's platform.
        docker.errors.DockerException: the engine fails.
    """
    from docker.errors import ImageNotFound

    platform = {key: client.version()[name] for key, name in (("os", "Os"), ("architecture", "Arch"))}
    try:
        [digest] = [*_manifests(folder, _json(folder / "index.json"), platform)]
        manifest = _json(_blob(folder, digest))
        blobs = [_blob(folder, each["digest"]) for each in (manifest["config"], *manifest["layers"])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder} is no OCI image layout with one image for {'/'.join(platform.values())} ({error!r}); "
            "make one: docker buildx build --output type=oci,tar=false,dest=FOLDER, or skopeo copy "
            "docker://NAME oci:FOLDER"
        ) from error
    tag = f"{_REPOSITORY}:{digest.partition(':')[2][:32]}"
    try:
        client.images.get(tag)
    except ImageNotFound:
        with tempfile.TemporaryFile() as archive:
            _pack(folder, blobs, tag, archive)
            archive.seek(0)
            client.images.load(archive)
    return tag


def _manifests(
    folder: Path, index: Mapping[str, Any], platform: Mapping[str, str], depth: int = 0
) -> Iterator[str]:
    """Digest of each image manifest for a platform."""
    for each in index["manifests"] if depth < _MAX_DEPTH else ():
        if each["mediaType"].endswith(("image.index.v1+json", "manifest.list.v2+json")):
            yield from _manifests(folder, _json(_blob(folder, each["digest"])), platform, depth + 1)
        elif platform.items() <= each.get("platform", platform).items():
            yield each["digest"]


def _pack(folder: Path, blobs: Sequence[Path], tag: str, archive: Any) -> None:
    """Write an archive as ``docker save`` does.

    Args:
        folder: the layout.
        blobs: the image's configuration, then its layers.
        tag: name of the image.
        archive: a file to write to.
    """
    config, *layers = (path.relative_to(folder).as_posix() for path in blobs)
    listed = json.dumps([{"Config": config, "RepoTags": [tag], "Layers": layers}]).encode()
    with tarfile.open(fileobj=archive, mode="w") as file:
        for path in dict.fromkeys(blobs):
            file.add(path, path.relative_to(folder).as_posix())
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(listed)
        file.addfile(entry, io.BytesIO(listed))


def _blob(folder: Path, digest: str) -> Path:
    """Path of a blob.

    Raises:
        ValueError: that is no digest, or there is no such blob.
    """
    found = _DIGEST.fullmatch(digest)
    if found is None or not (path := folder / "blobs" / found[1] / found[2]).is_file():
        raise ValueError(f"no blob {digest}")
    return path


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())
