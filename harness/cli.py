"""The command line: ``python -m harness VERB``, also installed as ``harness``.

Only parsing happens here; each verb imports what it needs when it runs. Exit codes: 0 done; 1 the answer is no;
2 bad input; 3 done, but some cells failed or lacked weights; 4 inconclusive (compare); 130 interrupted.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from harness.cli_data import data_app
from harness.cli_options import (
    AllowOutside,
    BadImage,
    BatchSize,
    DetectorName,
    Device,
    Every,
    Json,
    Options,
    Out,
    Pictures,
    ProtocolName,
    StoreOption,
    Threads,
    Tracking,
    Weights,
    WeightsRoot,
    Workers,
    leave,
    say,
)
from harness.cli_sweep import sweep
from harness.cli_train import train

app = typer.Typer(
    name="harness", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Which published numbers on AI-generated-face detection hold, on which images, by how much.",
)  # fmt: skip
detectors_app = typer.Typer(no_args_is_help=True, help="Registered detectors.")
suites_app = typer.Typer(no_args_is_help=True, help="Suites that come with the package.")
store_app = typer.Typer(no_args_is_help=True, help="The store of computed results.")
weights_app = typer.Typer(no_args_is_help=True, help="Official checkpoints: what there is, what is here, conversion.")
app.add_typer(detectors_app, name="detectors")
app.add_typer(weights_app, name="weights")
app.add_typer(suites_app, name="suites")
app.add_typer(data_app, name="data")
app.add_typer(store_app, name="store")


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="A suite file, or the name of a shipped suite.")],
    profile: Annotated[str | None, typer.Option(help="demo or full. [default: full if ./data is there]")] = None,
    protocol: Annotated[str | None, typer.Option(help="paper, released or clean.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder with the images. [default: ./data]")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Start from what `data index` wrote of the data root; read no image before.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change a key; repeatable.")] = None,
    detectors: Annotated[str | None, typer.Option(help="Only these rows, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many generated images a generator.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="inline (this process) or ray (a cluster). [default: the suite's, inline]")
    ] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster. [default: one of our own]")] = None,
    require_all: Annotated[bool, typer.Option("--require-all", help="Stop if any weights are missing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    match_format: Annotated[
        str | None, typer.Option(metavar="SIZE:QUALITY", help="Bring all images to one size and JPEG setting.")
    ] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Apply EXIF rotation (the released code does not).")] = False,
    on_bad_image: Annotated[str, typer.Option(help="stop, or skip (counted in every table).")] = "stop",
    workers: Annotated[int | None, typer.Option(min=0, help="Threads that read images.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one forward (part of the keys).")] = None,
    allow_outside: AllowOutside = False,
    device: Device = "auto",
    batch_size: BatchSize = None,
    store: StoreOption = Path(".blades-store"),
    weights_root: WeightsRoot = Path("pretrained"),
    tracking_uri: Tracking = None,
    every: Every = 500,
    as_json: Json = False,
) -> None:
    """Run a suite: score every image with every detector, then tables, figures and MLflow.

    Example: harness run cross_generator --profile demo
    """
    from harness.verbs.run import RunRequest, run_suite

    request = RunRequest(
        suite=suite, profile=profile, protocol=protocol, data_root=data_root, manifest=manifest, out=out,
        settings=tuple(set_ or ()),
        detectors=tuple(d.strip() for d in detectors.split(",") if d.strip()) if detectors else None,
        limit=limit, engine=engine, ray_address=ray_address, require_all=require_all, dry_run=dry_run,
        match_format=match_format, rotate=rotate,
        on_bad_image=on_bad_image, workers=workers, threads=threads, allow_outside=allow_outside, device=device,
        batch_size=batch_size, store=store, weights_root=weights_root, tracking_uri=tracking_uri,
        every=every,
    )  # fmt: skip
    result = run_suite(request, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(result.document(), indent=2, ensure_ascii=False))
    leave(result.exit_code)


app.command()(train)
app.command()(sweep)


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs, trainings or sweeps.")],
    log: Annotated[bool, typer.Option("--log", help="Also log to MLflow.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the table of several trainings into this folder (md, csv).")
    ] = None,
    tracking_uri: Tracking = None,
) -> None:
    """Make tables, figures and the page again from stored scores; of trainings and sweeps, their figures."""
    from harness.verbs.report import report_runs

    report_runs(run_dirs, log=log, tracking_uri=tracking_uri, out=out)


@app.command()
def compare(
    run_dir: Annotated[Path, typer.Argument(help="A run folder.")],
    table: Annotated[str | None, typer.Option(help="Only this published table.")] = None,
    as_json: Json = False,
) -> None:
    """Measured against published: exit 0 all reproduced, 1 some not, 4 inconclusive."""
    from harness.verbs.report import compare_run

    document, text, code = compare_run(run_dir, table)
    say(document, as_json, text)
    leave(code)


@app.command()
def fit(
    out: Annotated[Path, typer.Option(help="The fitted folder to write.")],
    detector: DetectorName = None,
    data_root: Annotated[Path, typer.Option(help="A data root, or a folder of photographs.")] = Path("data"),
    generated: Annotated[Path | None, typer.Option(help="Generated images, for heads that learn from both.")] = None,
    count: Annotated[int, typer.Option(min=1, help="At most so many photographs.")] = 25_000,
    weights: Weights = None,
    set_: Options = None,
    protocol: ProtocolName = "paper",
    on_bad_image: BadImage = "stop",
    workers: Workers = 2,
    threads: Threads = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    weights_root: WeightsRoot = Path("pretrained"),
    as_json: Json = False,
) -> None:
    """Fit a detector's head and threshold; the folder it writes is what `score --fitted` reads, on any machine.

    Example: harness fit --detector zou25 --data-root photographs --out fitted/zou25
    """
    from harness.verbs.choose import Chosen
    from harness.verbs.fit import fit as fit_detector
    from harness.verbs.score import listener

    chosen = Chosen(
        detector=detector, weights=tuple(weights or ()), settings=tuple(set_ or ()), protocol=protocol, device=device,
        batch_size=batch_size, threads=threads, weights_root=weights_root,
    )  # fmt: skip
    answer = fit_detector(
        chosen, data_root, generated, out, count=count, on_bad_image=on_bad_image, workers=workers,
        emit=listener(quiet=as_json),
    )  # fmt: skip
    say(answer.document, as_json, answer.text)
    leave(answer.code)


@app.command()
def score(
    images: Pictures,
    fitted: Annotated[Path | None, typer.Option(help="A fitted folder, or a run folder (then --detector ROW).")] = None,
    detector: DetectorName = None,
    weights: Weights = None,
    set_: Options = None,
    protocol: ProtocolName = "paper",
    faces: Annotated[
        str, typer.Option(help="Judge the whole image, crop to its face, or off: look for none.")
    ] = "whole",
    on_bad_image: BadImage = "stop",
    workers: Workers = 2,
    threads: Threads = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    weights_root: WeightsRoot = Path("pretrained"),
    as_json: Json = False,
) -> None:
    """Say of your own images whether they are photographic or generated; a score equals the one in a suite.

    Example: harness score portrait.jpg folder --fitted fitted/zou25 --json
    """
    from harness.verbs.choose import Chosen
    from harness.verbs.score import Looked, listener
    from harness.verbs.score import score as score_images

    chosen = Chosen(
        detector=detector, fitted=fitted, weights=tuple(weights or ()), settings=tuple(set_ or ()), protocol=protocol,
        device=device, batch_size=batch_size, threads=threads, weights_root=weights_root,
    )  # fmt: skip
    looked = Looked(None if faces == "off" else faces, on_bad_image, workers)
    answer = score_images(images, chosen, looked, emit=listener(quiet=as_json))
    say(answer.document, as_json, answer.text)
    leave(answer.code)


@app.command()
def embed(
    images: Pictures,
    out: Annotated[Path, typer.Option(help="The .npz file to write: features [N, D] float32, paths [N].")],
    detector: DetectorName = None,
    fitted: Annotated[Path | None, typer.Option(help="A fitted folder, or a run folder (then --detector ROW).")] = None,
    weights: Weights = None,
    set_: Options = None,
    protocol: ProtocolName = "paper",
    on_bad_image: BadImage = "stop",
    workers: Workers = 2,
    threads: Threads = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    weights_root: WeightsRoot = Path("pretrained"),
    as_json: Json = False,
) -> None:
    """Write a detector's features of your own images; a row is NaN where it abstains.

    Example: harness embed folder --detector clip --out features.npz
    """
    from harness.verbs.choose import Chosen
    from harness.verbs.score import Looked, listener
    from harness.verbs.score import embed as embed_images

    chosen = Chosen(
        detector=detector, fitted=fitted, weights=tuple(weights or ()), settings=tuple(set_ or ()), protocol=protocol,
        device=device, batch_size=batch_size, threads=threads, weights_root=weights_root,
    )  # fmt: skip
    answer = embed_images(images, chosen, Looked(None, on_bad_image, workers), out, emit=listener(quiet=as_json))
    say(answer.document, as_json, answer.text)
    leave(answer.code)


@weights_app.command("list")
def weights_list(weights_root: WeightsRoot = Path("pretrained"), as_json: Json = False) -> None:
    """Every official file: which detectors need it, where it comes from, its licence, and whether it is here."""
    from harness.verbs.weights import listing

    say(*listing(weights_root, as_json))


@weights_app.command("check")
def weights_check(weights_root: WeightsRoot = Path("pretrained"), as_json: Json = False) -> None:
    """Read each official file that is here: size, digest, loadable. Exit 1 when one is bad; a missing one is not."""
    from harness.verbs.weights import check

    document, text, ok = check(weights_root)
    say(document, as_json, text)
    leave(0 if ok else 1)


@weights_app.command("convert")
def weights_convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A TorchScript archive or a pickled module.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    allow: Annotated[
        list[str] | None, typer.Option(metavar="module.Class", help="A class name it may hold; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make safetensors of a file that loaders refuse, in a process of its own in which nothing of the file runs."""
    from harness.verbs.weights import convert

    document, text = convert(source, out, allow or [])
    say(document, as_json, text)


@detectors_app.command("list")
def detectors_list(as_json: Json = False) -> None:
    """Every registered detector and the package it comes from."""
    from harness.verbs.detectors import listing

    say(*listing(as_json))


@detectors_app.command("show")
def detectors_show(
    name: str,
    flops: Annotated[bool, typer.Option(help="Count FLOPs by a forward with random weights (seconds).")] = True,
    weights_root: WeightsRoot = Path("pretrained"),
    as_json: Json = False,
) -> None:
    """Facts, options, parameters, FLOPs, weights and what is missing of a detector."""
    from harness.verbs.detectors import show

    say(*show(name, weights_root, as_json, flops=flops))


@detectors_app.command("check")
def detectors_check(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Detectors; all if none.")] = None,
    as_json: Json = False,
) -> None:
    """Run detectors with stated random weights on a few images: finite, deterministic, batch invariant, saved alike."""
    from harness.verbs.detectors import check

    document, _, text = check(names or [], as_json)
    say(document, as_json, text)
    leave(0 if all(row["ok"] for row in document) else 1)


@suites_app.command("list")
def suites_list(as_json: Json = False) -> None:
    """Shipped suites and sweeps."""
    from harness.verbs.suites import listing

    say(*listing(as_json))


@suites_app.command("show")
def suites_show(name: str) -> None:
    """Print a suite file."""
    from harness.engine.suite import find_suite

    typer.echo(find_suite(name).read_text(encoding="utf-8"), nl=False)


@suites_app.command("copy")
def suites_copy(name: str, out: Out = Path(".")) -> None:
    """Copy a suite file to a folder or file name of yours, to change it."""
    from harness.verbs.suites import copy

    typer.echo(f"wrote {copy(name, out)}")


@store_app.command("ls")
def store_ls(store: StoreOption = Path(".blades-store"), as_json: Json = False) -> None:
    """What the store holds, largest first."""
    from harness.verbs.store import listing

    say(*listing(store, as_json))


@store_app.command("verify")
def store_verify(store: StoreOption = Path(".blades-store"), as_json: Json = False) -> None:
    """Read everything and compare digests; damaged parts are set aside. Exit 1 when there were any."""
    from harness.verbs.store import verify

    faults = verify(store)
    say(faults, as_json, "\n".join(faults) if faults else "sound")
    leave(1 if faults else 0)


@store_app.command("gc")
def store_gc(
    store: StoreOption = Path(".blades-store"),
    unused_days: Annotated[
        float | None, typer.Option(min=0, help="Also remove keys not written for so many days (0: all).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove debris, and what nobody wrote to for long."""
    from harness.verbs.store import gc

    typer.echo(gc(store, unused_days, dry_run))


def main() -> None:
    """Entry point: errors that are the input's fault become one message and exit code 2."""
    from harness.api.errors import HarnessError

    # what Pillow thinks of a file's metadata or size; whether the file is refused is said by us
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        app(standalone_mode=True)
    except HarnessError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except SystemExit as left:
        if left.code == 130:  # typer turns an interrupt into this
            typer.echo("interrupted: what was computed is kept; the same command goes on from there", err=True)
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a full disk, a name too long, a folder that cannot be written, wherever it is met
        where = "" if error.filename is None else f"\n  where: {str(error.filename)[:300]}"
        fix = "check the path, its permissions and free space; what was computed before is kept"
        typer.echo(f"error: {error.strerror or error}{where}\n  fix: {fix}", err=True)
        sys.exit(2)
