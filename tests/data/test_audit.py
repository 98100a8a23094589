"""The format audit: metadata that carry the label are found out, metadata that do not give chance."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from harness.data.audit import format_audit_scores, format_table, metadata, separations
from harness.data.edits import InputEdits, MatchFormat
from harness.data.manifest import build_manifest, conform
from harness.data.splits import draw_cells


def manifest(num: int, photographic: dict[str, object], generated: dict[str, object], seed: int = 0) -> pd.DataFrame:
    """`num` images a class; a header fact may be a function of the random generator."""
    rng = np.random.default_rng(seed)
    rows = []
    for label, facts in ((0, photographic), (1, generated)):
        for i in range(num):
            sha = hashlib.sha256(f"{label}/{i}".encode()).hexdigest()
            base = {"sha256": sha, "path": sha, "label": label, "generator": "ddim" if label else "",
                    "dataset": "celeba-face", "group": sha, "split": "report", "order": i, "width": 256,
                    "height": 256, "format": "JPEG", "jpeg_quality": 90, "bytes": 1000}  # fmt: skip
            rows.append(base | {k: v(rng) if callable(v) else v for k, v in facts.items()})
    return conform(pd.DataFrame(rows))


def audit_auc(table: pd.DataFrame, edits: InputEdits | None = None) -> float:
    audit = format_audit_scores(table, draw_cells(table, n=10_000), 2024, edits=edits)
    return float(roc_auc_score(audit["label"], audit["score"]))


@pytest.mark.parametrize(
    "facts",
    [{"format": "PNG", "jpeg_quality": -1}, {"width": 1024, "height": 1024}, {"jpeg_quality": 75}, {"height": 255}],
)
def test_a_fact_that_differs_by_class_is_found_out(facts: dict[str, object]) -> None:
    for num in (16, 200):
        assert audit_auc(manifest(num, {}, facts)) > 0.99


def test_constant_metadata_give_one_half_to_all() -> None:
    table = manifest(50, {}, {})
    audit = format_audit_scores(table, draw_cells(table, n=99))
    assert (audit["score"] == 0.5).all()


def test_metadata_that_do_not_depend_on_the_class_give_chance() -> None:
    def random_size(rng: np.random.Generator) -> int:
        return int(rng.integers(100, 1000))

    facts = {"width": random_size, "height": random_size}
    aucs = [audit_auc(manifest(300, facts, facts, seed)) for seed in range(3)]
    assert abs(np.mean(aucs) - 0.5) < 0.06


def test_a_common_format_takes_the_separation_away() -> None:
    table = manifest(40, {}, {"format": "PNG", "jpeg_quality": -1, "width": 1024})
    assert audit_auc(table) > 0.99
    edits = InputEdits(match_format=MatchFormat(size=256, quality=90))
    assert audit_auc(table, edits) == 0.5
    assert metadata(table, edits).drop_duplicates().to_dict("records") == [
        {"format": "JPEG", "width": 256, "height": 256, "jpeg_quality": 90, "aspect": 1.0}
    ]


def test_scores_follow_the_cells_and_repeat_to_the_bit() -> None:
    table = manifest(60, {"width": lambda r: int(r.integers(200, 400))}, {"width": lambda r: int(r.integers(300, 500))})
    cells = draw_cells(table, n=50)
    first, again = (format_audit_scores(table, cells, 7) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(first[list(cells.columns)], cells)
    assert first["score"].between(0, 1).all()
    assert first["score"].dtype == np.float64
    assert not first["score"].equals(format_audit_scores(table, cells, 8)["score"])


def test_a_test_sets_scores_do_not_depend_on_other_test_sets() -> None:
    facts = {"width": lambda r: int(r.integers(200, 400))}
    table = manifest(40, facts, facts)
    other = table[table["label"] == 1].assign(generator="ldm", sha256=lambda t: t["sha256"].str[::-1])
    both = conform(pd.concat([table, other]))
    alone = format_audit_scores(table, draw_cells(table, n=99))
    among = format_audit_scores(both, draw_cells(both, n=99))
    pd.testing.assert_frame_equal(among[among["test_set"] == "ddim"].reset_index(drop=True), alone)


def test_copies_of_one_origin_never_help_across_folds() -> None:
    table = manifest(60, {"width": lambda r: int(r.integers(0, 2**30))}, {"width": lambda r: int(r.integers(0, 2**30))})
    copies = table.assign(sha256=table["sha256"].str[::-1])
    both = conform(pd.concat([table, copies]))
    assert audit_auc(both) < 0.7


@pytest.mark.parametrize("num", [1, 2, 3])
def test_tiny_test_sets_give_scores_too(num: int) -> None:
    table = manifest(num, {}, {"width": 9})
    audit = format_audit_scores(table, draw_cells(table, n=9))
    assert audit["score"].notna().all()
    assert len(separations(audit)) == 1


def test_cells_that_the_manifest_lacks_are_refused() -> None:
    table = manifest(5, {}, {})
    with pytest.raises(ValueError, match="not in the manifest"):
        format_audit_scores(table.iloc[1:], draw_cells(table, n=9))


def test_separations_equal_scikit_learns_auc_and_warn_only_with_evidence() -> None:
    table = manifest(80, {"width": lambda r: int(r.integers(200, 400))}, {"width": lambda r: int(r.integers(300, 500))})
    audit = format_audit_scores(table, draw_cells(table, n=99))
    found = separations(audit)[0]
    assert found.auc == pytest.approx(roc_auc_score(audit["label"], audit["score"]))
    assert found.warns
    assert "WARN" not in found.message
    assert "metadata alone" in found.message
    chance = separations(audit.assign(score=0.5))[0]
    assert (chance.auc, chance.warns) == (0.5, False)


def test_the_format_table_shows_each_class_and_generator() -> None:
    table = manifest(10, {"width": 300}, {"format": "PNG", "jpeg_quality": -1})
    rows = format_table(table).set_index("name")
    assert rows.loc["celeba-face", "formats"] == "JPEG 100%"
    assert rows.loc["celeba-face", "most_common_size"] == "300x256 100%"
    assert rows.loc["ddim", "formats"] == "PNG 100%"
    assert rows.loc["ddim", "jpeg_quality"] == "-"
    assert format_table(table.iloc[:0]).empty


def test_formats_alone_separate_the_shared_folders_as_their_readme_says(shared_data: Path) -> None:
    table = build_manifest(shared_data / "faces").require().table
    found = separations(format_audit_scores(table, draw_cells(table, n=5000)))
    assert len(found) == 6
    assert all(s.warns and s.auc > 0.95 for s in found)
