"""``harness data``: check, index or make data. Only parsing happens here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli_options import AllowOutside, BadImage, Json, Out, leave, say

data_app = typer.Typer(no_args_is_help=True, help="Check, index or make data.")


@data_app.command("check")
def data_check(
    data_root: Annotated[Path, typer.Option(help="Folder with the images.")] = Path("data"),
    suite: Annotated[str, typer.Option(help="The suite that says what should be there.")] = "cross_generator",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change a key; repeatable.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Read headers only.")] = False,
    allow_outside: AllowOutside = False,
    as_json: Json = False,
) -> None:
    """Decode every file, list all problems at once, and audit formats by class. Exit 1 when there are errors."""
    from harness.verbs.data import check

    document, text, ok = check(data_root, suite, set_ or [], fast=fast, allow_outside=allow_outside)
    say(document, as_json, text)
    leave(0 if ok else 1)


@data_app.command("index")
def data_index(
    out: Out,
    data_root: Annotated[Path, typer.Option(help="Folder with the images.")] = Path("data"),
    suite: Annotated[str, typer.Option(help="The suite that says what should be there.")] = "cross_generator",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change a key; repeatable.")] = None,
    allow_outside: AllowOutside = False,
) -> None:
    """Write manifest.parquet: every image with digest, label, generator, split, size and format."""
    from harness.verbs.data import index

    path, count = index(data_root, suite, set_ or [], out, allow_outside=allow_outside)
    typer.echo(f"wrote {path} ({count:,} images)")


@data_app.command("demo")
def data_demo(out: Out) -> None:
    """Make the embedded demo corpus as a data root."""
    from harness.verbs.data import demo

    typer.echo(f"wrote {demo(out)}")


@data_app.command("manipulate")
def data_manipulate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of faces (those in it, not below it).")],
    out: Out,
    landmarks: Annotated[
        Path | None, typer.Option(help="A folder of ID.npy, a landmarks .json, or dlib's predictor .dat.")
    ] = None,
    numbers: Annotated[str, typer.Option(help="Manipulations, of 0 to 4, separated by commas.")] = "0,1,2,3",
    no_landmarks: Annotated[
        str, typer.Option(help="A flip without landmarks: whole_face (warped instead), or drop.")
    ] = "whole_face",
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 2024,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes.")] = 1,
    on_bad_image: BadImage = "stop",
    as_json: Json = False,
) -> None:
    """Make the manipulated faces of a folder as files ID_NUMBER.png; what is there is not made again.

    Example: harness data manipulate faces --landmarks landmarks --out negatives
    """
    from harness.verbs.data_manipulate import manipulate, settings_of

    settings = settings_of(numbers, seed, no_landmarks, on_bad_image)
    document, text, code = manipulate(folder, out, settings, landmarks=landmarks, workers=workers, quiet=as_json)
    say(document, as_json, text)
    leave(code)


@data_app.command("exif")
def data_exif(
    paths: Annotated[list[Path], typer.Argument(metavar="DIR|FILE...", help="Folders, images, or JSON with EXIF.")],
    out: Out,
    levels: Annotated[int, typer.Option(help="Levels of an ordinal tag: 3 or 5.")] = 3,
    cuts: Annotated[
        list[str] | None, typer.Option(metavar="FILE|tag=a,b", help="Cut points (exif_cuts.json, or iso=100,400).")
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Classes and rules as YAML. [default: suites/exif/blades.yaml]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read EXIF into one table; say which tags carry information; write levels and classes as a label file.

    Exit 1 when no photograph has any of the nine tags.
    """
    from harness.verbs.data_exif import exif

    document, text, code = exif(paths, out, levels=levels, cuts=cuts or [], vocabulary=vocabulary, quiet=as_json)
    say(document, as_json, text)
    leave(code)
