"""The finished measurements of an ablation, in a folder from which it goes on after an interruption.

settings.json     the resolved configuration and the checksums of its inputs: what a rerun has to agree with
ablation.jsonl    one row an anchor and budget, measurement by measurement in the order they were finished; the first of
                  each has the checksum of them all

What survives a kill or a power cut: every measurement that `add` returned from. It is appended by one write and synced,
with the first the folder's entry, too. One that was cut short can only be the last: it is dropped on opening, and
measured again. What is drawn from these (ablation.csv, figures, report) is written anew each time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from negbank import files
from negbank.train.config.differences import differences
from negbank.train.studies.ablation.measurement import MEASURES, Key, Measurement

SETTINGS, ROWS = "settings.json", "ablation.jsonl"
OUTPUTS = (SETTINGS, ROWS, "ablation.csv", "tv.png", "bias.png", "report.html")
SUM = "sha256"
VALUES = (*MEASURES, "ms_low", "ms_high")


class AblationError(ValueError):
    """A folder whose results are of another ablation, or damaged."""


class Store:
    """Opens or starts the results in `folder`; `done` has what is finished.

    Args:
        folder: made when the first measurement is added.
        settings: plain values that decide the results. A folder with others is refused.
        overwrite: remove what an ablation left in the folder first.

    Raises:
        AblationError: for results of other settings, or a damaged file.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.folder, self._settings = folder, json.loads(json.dumps(settings))
        self.done: dict[Key, Measurement] = {}
        self._ends: dict[Key, int] = {}  # where in the file each measurement ends
        if overwrite:
            for name in OUTPUTS:
                (folder / name).unlink(missing_ok=True)
        if (folder / SETTINGS).exists():
            self._require_same()
            if (folder / ROWS).exists():
                self._read()
        elif (folder / ROWS).exists():
            raise AblationError(
                f"{folder} holds {ROWS} without {SETTINGS}; choose another folder, or replace it with --overwrite"
            )

    def add(self, measurement: Measurement) -> None:
        """Append a finished measurement, so that it is there whole or, after a crash in between, not at all."""
        path = self.folder / ROWS
        if not (self.folder / SETTINGS).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write(self.folder / SETTINGS, files.sealed(self._settings))
        with path.open("ab") as file:
            rows = anchor_rows(measurement)
            rows[0] = {**rows[0], SUM: _sum(rows)}
            file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
            self._ends[measurement.key] = file.tell()
        if not self.done:
            files.sync(self.folder)
        self.done[measurement.key] = measurement

    def cut(self, key: Key) -> None:
        """Forget the measurement of `key` and all that were added after it."""
        keys = list(self.done)
        kept = keys[: keys.index(key)]
        os.truncate(self.folder / ROWS, self._ends[kept[-1]] if kept else 0)
        self.done, self._ends = {k: self.done[k] for k in kept}, {k: self._ends[k] for k in kept}

    def _require_same(self) -> None:
        try:
            theirs = files.read(self.folder / SETTINGS)
        except files.DamagedError as error:
            raise AblationError(f"{error}; replace the results with --overwrite") from None
        if shown := differences(self._settings, theirs, "there"):
            raise AblationError(
                f"{self.folder} holds the results of another ablation ({shown}); choose another folder, or replace "
                f"them with --overwrite"
            )

    def _read(self) -> None:
        """Take up all whole measurements and drop one that was cut short at the end of the file."""
        path, end, rows = self.folder / ROWS, 0, []
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    rows.append(json.loads(line))
                    whole = len(rows) == rows[0]["anchors"] * rows[0]["budgets"]
                    measurement = measurement_of(rows) if whole else None
                except (ValueError, KeyError, TypeError) as error:
                    raise AblationError(
                        f"{path}, line {number}: damaged ({error!r}); replace the results with --overwrite"
                    ) from None
                end += len(line)
                if measurement is not None:
                    self.done[measurement.key], self._ends[measurement.key], rows = measurement, end, []
        os.truncate(path, max(self._ends.values(), default=0))


def anchor_rows(measurement: Measurement) -> list[dict[str, Any]]:
    """One row an anchor and budget, as in ablation.jsonl."""
    head = {**measurement.key._asdict(), "staleness": measurement.staleness, "anchors": len(measurement.anchors)}
    values = {name: measurement.values[name].tolist() for name in VALUES}
    return [
        {**head, "budgets": len(measurement.budgets), "anchor": anchor, "budget": budget}
        | {name: None if values[name][i][k] != values[name][i][k] else values[name][i][k] for name in VALUES}
        for i, anchor in enumerate(measurement.anchors.tolist())
        for k, budget in enumerate(measurement.budgets)
    ]


def _sum(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def measurement_of(rows: list[dict[str, Any]]) -> Measurement:
    """The measurement that `anchor_rows` was called with, of rows of which the first has the checksum of all.

    Raises:
        ValueError: for rows that are not those of one measurement.
    """
    first = rows[0]
    if first.pop(SUM, None) != _sum(rows):
        raise ValueError("its checksum differs from what it says")
    keys = {Key(*(row[name] for name in Key._fields)) for row in rows}
    anchors = [row["anchor"] for row in rows[:: first["budgets"]]]
    budgets = tuple(row["budget"] for row in rows[: first["budgets"]])
    if len(keys) > 1 or [(row["anchor"], row["budget"]) for row in rows] != [(a, b) for a in anchors for b in budgets]:
        raise ValueError(f"rows of {len(keys)} measurements where one was expected")
    values = {
        name: torch.tensor(
            [float("nan") if row[name] is None else row[name] for row in rows], dtype=torch.float64
        ).view(len(anchors), len(budgets))
        for name in VALUES
    }
    return Measurement(keys.pop(), first["staleness"], torch.tensor(anchors), budgets, values)
