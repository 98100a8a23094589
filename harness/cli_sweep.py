"""The command line's ``sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli_options import AllowOutside, Device, Every, Json, StoreOption, Tracking, WeightsRoot, leave, say


def sweep(
    suite: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or the name of a shipped sweep.")],
    data_root: Annotated[Path | None, typer.Option(help="Folder with the images. [default: ./data]")] = None,
    profile: Annotated[str | None, typer.Option(help="demo: the embedded corpus.")] = None,
    out: Annotated[Path, typer.Option(help="Where sweep folders go.")] = Path("runs"),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Change a key of the sweep, or of its recipe; repeatable."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples, in place of the file's.")] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at once at most. [default: as there is room for]")
    ] = None,
    every: Every = 500,
    threads: Annotated[int, typer.Option(min=1, help="Threads (and CPUs) of one trial; part of its key.")] = 1,
    workers: Annotated[int | None, typer.Option(min=0, help="Threads that read images.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trials and stop.")] = False,
    allow_outside: AllowOutside = False,
    device: Device = "auto",
    store: StoreOption = Path(".blades-store"),
    weights_root: WeightsRoot = Path("pretrained"),
    tracking_uri: Tracking = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster. [default: one of our own]")] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe with values drawn from spaces, and say which did best on `select`.

    Example: harness sweep sweep_lambda_lr --profile demo
    """
    from harness.verbs.sweep import SweepRequest, run_sweep

    done = run_sweep(SweepRequest(
        sweep=suite, data_root=data_root, profile=profile, out=out, settings=tuple(set_ or ()), samples=samples,
        concurrent=concurrent, every=every, threads=threads, workers=workers, device=device,
        allow_outside=allow_outside, store=store, weights_root=weights_root, tracking_uri=tracking_uri,
        ray_address=ray_address, dry_run=dry_run,
    ))  # fmt: skip
    say(done.document(), as_json, done.text())
    leave(done.exit_code)
