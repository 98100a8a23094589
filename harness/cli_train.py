"""The command line's ``train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli_options import AllowOutside, Device, Every, Json, StoreOption, Threads, Tracking, WeightsRoot, say


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    data_root: Annotated[Path | None, typer.Option(help="Folder with the images. [default: ./data]")] = None,
    profile: Annotated[str | None, typer.Option(help="demo: the embedded corpus.")] = None,
    out: Annotated[Path, typer.Option(help="Where training folders go.")] = Path("runs"),
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the weights: .safetensors, or .pth as the authors.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change a key; repeatable.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Then measure it on the split `report`, which training never sees.")
    ] = False,
    every: Every = 500,
    threads: Threads = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Threads that read images.")] = None,
    allow_outside: AllowOutside = False,
    device: Device = "auto",
    store: StoreOption = Path(".blades-store"),
    weights_root: WeightsRoot = Path("pretrained"),
    tracking_uri: Tracking = None,
    engine: Annotated[
        str, typer.Option(help="Who starts the recipe's processes: inline (this machine), or ray (Ray Train).")
    ] = "inline",
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster. [default: one of our own]")] = None,
    as_json: Json = False,
) -> None:
    """Train an extractor by a recipe; interrupted or killed, the same command goes on.

    Example: harness train demo_blades --profile demo
    """
    from harness.verbs.train import TrainRequest, train_one

    done = train_one(TrainRequest(
        recipe=recipe, data_root=data_root, profile=profile, out=out, export=export, settings=tuple(set_ or ()),
        every=every, threads=threads, workers=workers, device=device, allow_outside=allow_outside, store=store,
        weights_root=weights_root, tracking_uri=tracking_uri, engine=engine, ray_address=ray_address,
        report=report,
    ))  # fmt: skip
    if done.rank == 0:
        say(done.document(), as_json, done.text())
