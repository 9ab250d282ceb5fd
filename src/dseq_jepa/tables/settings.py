"""What a table shows: its columns, its rows and what each is compared with."""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from dseq_jepa.closed import Closed
from dseq_jepa.methods.settings import MethodSettings


class ColumnSettings(Closed):
    """One measured quantity."""

    metric: str
    """Its name in configs/reported_values.csv, such as imagenet_linear_top1."""
    label: str
    """Heading."""
    evaluation: str | None = None
    """Which entry of `evaluations` measures it; null: nothing does in this configuration."""
    value: str | None = None
    """Which of the evaluation's values, such as mask_ap; null: its main one."""
    decimals: int = Field(1, ge=0, le=6)
    """That our values are printed with; the paper's keep its one."""
    missing: str | None = None
    """Why nothing measures it; required exactly when evaluation is null."""

    @model_validator(mode="after")
    def _reasoned(self) -> Self:
        if (self.evaluation is None) != (self.missing is not None):
            raise ValueError("give either the evaluation that measures this column or, in `missing`, why there is none")
        if self.evaluation is None and self.value is not None:
            raise ValueError(f"value: {self.value} is one of an evaluation's; name the evaluation")
        return self


class RowSettings(Closed):
    """One system: what the paper reports and which run of ours stands beside it."""

    reported: str | None = None
    """Row name in configs/reported_values.csv; null: a method of your own, which the paper does not report."""
    reported_architecture: str
    """Architecture in configs/reported_values.csv, such as ViT-B/16; rows are compared within one architecture."""
    section: str | None = None
    """Heading above this row and those that follow."""
    method: str | None = None
    """Which entry of `methods`; null: no run of this configuration fills the row."""
    architecture: str | None = None
    """Which entry of `architectures`; given exactly when method is."""
    missing: str | None = None
    """Why no run fills the row; required exactly when method is null."""
    baseline: str | None = None
    """Name of the row (same reported architecture) that the deltas are against."""

    @model_validator(mode="after")
    def _reasoned(self) -> Self:
        if (self.method is None) != (self.architecture is None):
            raise ValueError("method and architecture are given together or not at all")
        if (self.method is None) != (self.missing is not None):
            raise ValueError("give either the method that fills this row or, in `missing`, why there is none")
        if self.method is None and self.reported is None:
            raise ValueError("give the method that fills this row, the `reported` row of the paper, or both")
        return self

    def system(self, methods: Mapping[str, MethodSettings]) -> str:
        """The row's name: the paper's, or the method's label where the paper has none."""
        if self.reported is not None:
            return self.reported
        method = methods.get(str(self.method))
        return method.label if method else str(self.method)


class TableSettings(Closed):
    """A table of the paper."""

    number: int = Field(ge=1)
    """Its number in the paper; the entry is called table<number>."""
    title: str
    """Caption."""
    columns: list[ColumnSettings] = Field(min_length=1)
    """What is measured, left to right."""
    rows: list[RowSettings] = Field(min_length=1)
    """Systems, top to bottom."""
    average: list[str] | None = None
    """Metrics whose mean is the last column, printed only where all of them exist (docs/protocols.md 3)."""
    transposed: bool = False
    """Metrics as rows and systems as columns, as the paper prints Table 3."""
    notes: tuple[str, ...] = ()
    """Footnotes about the paper's own values."""
