"""The model card of an adapter on the model hub: what it is, what was measured, how to load and verify it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from envkit.measure.report import tables
from envkit.measure.report import text as report_text
from envkit.measure.report.data import ReportData, Row, Scalar
from envkit.measure.report.page import templates
from envkit.measure.report.summary import summarise
from envkit.models import KNOWN
from envkit.models.adapter_folder import FULL, WITHOUT_RANK


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """An environment that an adapter was trained on.

    Args:
        name: its id.
        certificate: digest of its certificate; empty for none.
        code: digest of the code that decides its verdicts; empty if it is not known.
        tasks: split -> digest of the tasks.
    """

    name: str
    certificate: str
    code: str
    tasks: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """All that a card says.

    Args:
        repo: where the adapter is, ``owner/name``.
        adapter: digest of its weights.
        model: id of its base model.
        model_digest: digest of the base model's weights.
        control: what it changes; see `envkit.training.config.TrainConfig`.
        steps: steps of reinforcement learning; 0 for a warm start alone, ``None`` if it is not known.
        environments: in the order of the run.
        settings: of the training, flat; empty if they are not known.
        reports: those that have the adapter as a row; see `rows_of`.
        claimed_episodes: episodes in the adapter's claim; 0 if it has none.
        commit: version of envkit; empty if it is not known.
        programs: files of the harnesses that play, beside the adapter.
    """

    repo: str
    adapter: str
    model: str
    model_digest: str
    control: str
    steps: int | None
    environments: tuple[TrainedOn, ...]
    settings: Mapping[str, Scalar]
    reports: tuple[ReportData, ...]
    claimed_episodes: int
    commit: str
    programs: tuple[str, ...] = ()

    @property
    def base_model(self) -> str:
        """The base model's name on the model hub; empty if it is not there."""
        known = KNOWN.get(self.model)
        return known.repository if known else self.model if "/" in self.model else ""

    @property
    def kind(self) -> str:
        """Name the kind of adapter, for the first sentence of the card."""
        return {"steering": "A steering vector", FULL: "Whole weights"}.get(self.control, "A LoRA adapter")

    def metadata(self) -> dict[str, Any]:
        """Return the card's header. The licence is the base model's, where envkit knows it."""
        known = KNOWN.get(self.model)
        method = self.control if self.control in WITHOUT_RANK else "lora"
        methods = [] if self.steps is None else ["grpo"] if self.steps else ["sft"]
        return {
            **({"base_model": self.base_model} if self.base_model else {}),
            "library_name": "peft",
            **({"license": known.licence.lower()} if known else {}),
            "pipeline_tag": "text-generation",
            "tags": ["envkit", method, *methods, *(one.name for one in self.environments)],
        }


def rows_of(report: ReportData, adapter: str) -> list[Row]:
    """Rows of a report that are the adapter with this digest, with the environment's system message."""
    return [row for row in report.rows if row.origin.adapter == adapter and not row.origin.system]


def render_card(card: ModelCard) -> bytes:
    """Render ``README.md``; a pure function."""
    from huggingface_hub import ModelCardData

    measured = [
        {
            "environment": data.environment,
            # The last one: if RL has changed nothing, the warm start has the same weights.
            "row": rows_of(data, card.adapter)[-1].name,
            "results": tables.results(data, summary),
            "differences": tables.differences(summary),
            "warnings": report_text.warnings(data, summary),
        }
        for data in card.reports
        for summary in (summarise(data),)
    ]
    page = templates().get_template("model_card.md.j2")
    header = ModelCardData(**card.metadata()).to_yaml()
    text = page.render(
        card=card,
        names=", ".join(one.name for one in card.environments),
        header=header,
        measured=measured,
        config=tables.config(card.settings),
        known=card.model in KNOWN,
    )
    return text.encode()
