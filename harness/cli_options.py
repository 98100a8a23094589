"""What the verbs of the command line share: options, and how they print and end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
StoreOption = Annotated[Path, typer.Option("--store", help="Where results are kept and found again.")]
WeightsRoot = Annotated[Path, typer.Option("--weights-root", help="Folder with the official checkpoints.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ... or auto.")]
BatchSize = Annotated[str | None, typer.Option("--batch-size", help="Images a forward (a number, or auto).")]
Tracking = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow store, or off. [default: ./mlflow.db]")]
Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
DetectorName = Annotated[str | None, typer.Option("--detector", help="A detector's name (see detectors list).")]
Weights = Annotated[
    list[str] | None, typer.Option("--weights", help="A checkpoint, random, or SLOT=PATH (repeatable).")
]
Options = Annotated[
    list[str] | None, typer.Option("--set", metavar="k=v", help="An option of the detector; repeatable.")
]
ProtocolName = Annotated[str, typer.Option("--protocol", help="paper, released or clean.")]
BadImage = Annotated[str, typer.Option("--on-bad-image", help="stop, or skip (listed; exit code 3).")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Threads that read images.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of one forward. [default: all cores]")]
Pictures = Annotated[list[Path], typer.Argument(metavar="IMAGE|DIR...", help="Images, or folders of images.")]
Every = Annotated[
    int, typer.Option("--every", min=1, help="Steps of a training between two checkpoints, if they take no minute.")
]
AllowOutside = Annotated[bool, typer.Option("--allow-outside", help="Accept list lines that leave the data root.")]


def say(value: Any, as_json: bool, text: str) -> None:
    """Print for machines or for people."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)


def leave(code: int) -> NoReturn:
    """End with an exit code."""
    raise typer.Exit(code)
