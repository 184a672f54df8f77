"""The section `track`: where a run is shown."""

from __future__ import annotations

from pydantic import Field, field_validator

from pmg.config.section import NonNegative, Section, unshown

__all__ = ["TrackConfig"]


class TrackConfig(Section):
    """What shows a run while it goes on, beside metrics.jsonl and Prometheus."""

    tensorboard: bool = Field(False, description="write the run's tensorboard folder")
    mlflow: str | None = Field(
        None, description="MLflow's server, such as https://mlflow:5000, or a folder file:/..."
    )
    experiment: str = Field("pmg", min_length=1, description="MLflow's experiment")
    panel_every: NonNegative = Field(
        500, description="steps between pictures of patches and their translations; 0: none"
    )

    @field_validator("mlflow")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and ("@" in value or "?" in value):
            raise unshown(
                "must not hold a user or password; MLflow reads MLFLOW_TRACKING_USERNAME, "
                "MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN"
            )
        return value
