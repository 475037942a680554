"""Conversions to and from other programs' weights: one table of functions a direction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.convert.diffusers import export_diffusers, import_diffusers
from models.convert.names import Imported
from models.convert.state_dicts import export_annotated, export_pesser, import_annotated, import_pesser
from models.snapshot import Snapshot

EXPORTS: dict[str, Callable[[Snapshot, Path], None]] = {
    "diffusers": export_diffusers,
    "pesser": export_pesser,
    "annotated": export_annotated,
}
IMPORTS: dict[str, Callable[[Path, int | None], Imported]] = {
    "diffusers": import_diffusers,
    "pesser": import_pesser,
    "annotated": import_annotated,
}
