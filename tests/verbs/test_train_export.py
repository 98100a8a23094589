"""`harness train --export`: files that the detectors read, and the authors' container with the authors' names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import FIXED, JOINT, recipe

from detectors.blades.config import EncoderConfig
from detectors.blades.encoder import JointEncoder
from harness.api.errors import StoreError
from harness.verbs.train import write_export


def test_exported_files_are_what_the_detector_reads(here, tmp_path: Path, photographs: Path) -> None:
    from harness import load_detector

    words = ("train", recipe(tmp_path, JOINT), "--data-root", photographs, "--tracking-uri", "off", "--json", *FIXED)
    names = ("mine/encoder.safetensors", "mine/encoder.pth", "encoder.pt")
    answers = [here(*words, "--export", name).document for name in names]
    assert [answer["checkpoint"] for answer in answers] == list(names)
    blob = Path(".blades-store/blobs") / f"{answers[0]['sha256']}.safetensors"
    assert Path(names[0]).read_bytes() == blob.read_bytes()
    assert {p.name for p in Path("mine").iterdir()} == {"encoder.safetensors", "encoder.pth"}
    pixels = list(np.random.default_rng(1).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8))
    first, *others, random = (
        load_detector("blades-oc", weights=weights, encoder="tiny", image_size=32).features(pixels)
        for weights in (*names, "random")
    )
    assert np.isfinite(first).all()
    assert all(np.array_equal(other, first) for other in others)
    assert not np.allclose(first, random)


def test_the_container_holds_both_towers_and_nothing_that_must_be_unpickled(here, tmp_path, photographs) -> None:
    words = ("train", recipe(tmp_path, JOINT), "--data-root", photographs, "--tracking-uri", "off", "--json", *FIXED)
    answer = here(*words, "--export", "encoder.pth").document
    content = torch.load("encoder.pth", weights_only=True)
    assert set(content) == {"model"}
    stored = load_file(f".blades-store/blobs/{answer['sha256']}.safetensors")
    assert content["model"].keys() == stored.keys() == JointEncoder.random(EncoderConfig.tiny(), 0).to_authors().keys()
    assert all(torch.equal(value, stored[name]) for name, value in content["model"].items())
    assert {name.split(".")[1] for name in stored} == {
        "visual", "transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "text_fc",
        "logit_scale",
    }  # fmt: skip


def test_the_papers_encoder_is_exported_with_the_authors_names_and_shapes(golden_dir: Path) -> None:
    with torch.device("meta"):
        encoder = JointEncoder(EncoderConfig.paper())
        ours = {name: (list(v.shape), str(v.dtype)) for name, v in encoder.to_authors().items()}
    theirs = json.loads((golden_dir / "encoder_keys.json").read_text())["CLIP_EXIF_Net"]
    assert ours == {name: (shape, f"torch.{dtype}") for name, shape, dtype in theirs}


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    weights, export = tmp_path / "w.safetensors", tmp_path / "out" / "encoder.pth"
    save_file({"model.visual.fc.bias": torch.ones(3)}, weights)
    write_export(weights, export)
    before = export.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    save_file({"model.visual.fc.bias": torch.zeros(3)}, weights)
    monkeypatch.setattr("harness.results.files.os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_export(weights, export)
    assert export.read_bytes() == before
    assert [p.name for p in export.parent.iterdir()] == ["encoder.pth"]
