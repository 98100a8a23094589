from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from harness.results.evaluate import join_scores
from reports.figures import file_name
from reports.inputs import read_run
from reports.page import CellText
from reports.report import make_report

PNG = b"\x89PNG\r\n\x1a\n"


def _digests(folder):
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}  # fmt: skip


def test_a_report_writes_the_files_of_a_run_folder_from_stored_results_alone(demo_run):
    folder = demo_run.write()
    written = {p.relative_to(folder).as_posix() for p in make_report(folder)}
    expected = {"metrics.csv", "comparisons.csv", "report.html"}
    for table in ("cross_generator", "separability", "sensitivity", "comparisons"):
        expected |= {f"tables/{table}.{kind}" for kind in ("md", "csv", "tex")}
    expected |= {"figures/roc-convgan.png", "figures/roc-vqae.png"}
    expected |= {"figures/scores-blades-oc.png", "figures/scores-blades-bc.png"}
    expected |= {f"figures/{file_name('scores', 'noise_<b>')}"}
    assert written == expected
    assert all((folder / name).stat().st_size > 0 for name in written)
    assert all((folder / n).read_bytes()[:8] == PNG for n in written if n.endswith(".png"))


def test_a_report_made_again_is_the_same_to_the_byte(demo_run):
    folder = demo_run.write()
    make_report(folder)
    first = _digests(folder)
    make_report(folder)
    assert _digests(folder) == first


def test_metrics_csv_has_the_schema_that_others_read(demo_run):
    folder = demo_run.write()
    make_report(folder)
    table = pd.read_csv(folder / "metrics.csv")
    assert list(table.columns) == [
        "detector", "test_set", "metric", "value", "low", "high", "n", "n_photographic", "n_generated", "abstained",
        "seen",
    ]  # fmt: skip
    assert set(table["test_set"]) == {"convgan", "vqae", "mean"}
    assert set(table["detector"]) == {"blades-oc", "blades-bc", "noise_<b>", "format-only"}
    known = table["value"].dropna()
    assert known.between(0, 1).all()
    assert table.loc[table["detector"] == "blades-bc", "seen"].any()
    compared = pd.read_csv(folder / "comparisons.csv")
    assert set(compared["detector"]) == {"blades-bc", "noise_<b>"}


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "action", "data", "srcset")]

    def handle_data(self, data):
        self.text.append(data)


def _page(folder):
    page = _Page()
    html = (folder / "report.html").read_text(encoding="utf-8")
    page.feed(html)
    return html, page


def test_the_page_stands_alone(demo_run):
    folder = demo_run.write()
    make_report(folder)
    html, page = _page(folder)
    assert not {"script", "iframe", "link", "object", "form"} & set(page.tags)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "@import" not in html
    assert not re.search(r"url\(", html)
    assert page.tags.count("img") == 5
    assert '<meta name="viewport"' in html
    assert "@media print" in html


def test_the_page_marks_what_was_seen_and_prints_a_tables_note(full_run):
    full_run.record["tables"][0]["note"] = "Beside this stands <nothing>."
    folder = full_run.write()
    make_report(folder)
    html, page = _page(folder)
    assert "Beside this stands &lt;nothing&gt;." in html
    text = "".join(page.text)
    assert "cross_generator: LDM †" in text  # each number, against the paper
    assert "cross_generator: Avg. †" in text
    assert "cross_generator: DDIM †" not in text
    ran = html[html.index("What ran") : html.index("On what")]
    rows = {row.split("</th>")[0].rpartition(">")[2]: row for row in ran.split("<tr")[2:]}
    assert rows["BLADES-BC"].count("†") == 2  # means of accuracy and AUC
    assert "†" not in rows["BLADES-OC"]
    for title in ("Accuracy", "Separability", "Sensitivity", "Against the reference"):
        table = html[html.index(f"<h3>{title}</h3>") :].split("</section>")[0]
        lines = {line.split("</th>")[0].rpartition(">")[2]: line for line in table.split("<tr")[2:]}
        assert any("†" in line for name, line in lines.items() if name.startswith("BLADES-BC")), title
        assert not any("†" in line for name, line in lines.items() if name.startswith("BLADES-OC")), title


def test_figures_mark_what_was_seen(full_run):
    from reports.figures import _marks, histogram_figure, roc_figure

    run = read_run(full_run.write())
    sets = {s.name: s for s in join_scores(run.scores, run.cells)}

    def words(figure):
        found = [t.get_text() for t in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]
        return [text for text in found if "†" in text]

    for name, marked in (("ldm", True), ("ddim", False)):
        said = words(roc_figure(sets[name], [], _marks(run.record, name)))
        assert any(text.startswith("BLADES-BC †") for text in said) == marked
        assert not any(text.startswith("BLADES-OC") for text in said)
        assert any("trained on" in text for text in said) == marked
    both = [sets["ldm"], sets["ddim"]]
    said = words(histogram_figure("blades-bc", both, [], ["ldm"]))
    assert "LDM †" in said
    assert any("† trained on" in text for text in said)
    assert not any("DDIM" in text for text in said)
    assert words(histogram_figure("blades-bc", both, [], ["elsewhere"])) == []


def test_the_page_escapes_what_comes_from_the_run(demo_run):
    folder = demo_run.write()
    make_report(folder)
    html, page = _page(folder)
    assert "noise_<b>" in "".join(page.text)
    assert "<b>" not in html


def test_the_page_opens_with_stamps_and_the_verdict(demo_run):
    folder = demo_run.write()
    make_report(folder)
    text = " ".join("".join(_page(folder)[1].text).split())
    assert text.index("DEMO: embedded corpus") < text.index("Against the paper: inconclusive") < text.index("What ran")
    assert "format-only" in text
    assert "put it in pretrained" in text
    assert "Protocol clean" in text


def test_a_run_where_every_row_failed_still_gets_its_report(demo_run):
    demo_run.write()
    folder = demo_run.folder
    scores = pd.read_parquet(folder / "scores.parquet")
    scores.iloc[:0].to_parquet(folder / "scores.parquet")
    (folder / "audit.parquet").unlink()
    make_report(folder)
    assert "measured" in (folder / "tables" / "cross_generator.md").read_text()
    assert pd.read_csv(folder / "metrics.csv").empty


def test_scores_that_are_infinite_or_all_equal_can_be_drawn(demo_run):
    folder = demo_run.write()
    scores = pd.read_parquet(folder / "scores.parquet")
    oc = scores["detector"] == "blades-oc"
    scores.loc[oc, ["score", "prediction"]] = [0.25, 0]
    bc = scores.index[scores["detector"] == "blades-bc"][:5]
    scores.loc[bc, ["score", "prediction"]] = [np.inf, 1]
    noise = scores["detector"] == "noise_<b>"
    scores.loc[noise, ["score", "prediction"]] = [np.nan, -1]
    scores.astype({"prediction": "int8"}).to_parquet(folder / "scores.parquet")
    make_report(folder)
    table = pd.read_csv(folder / "metrics.csv")
    constant = table[(table.detector == "blades-oc") & (table.metric == "auc")]
    assert (constant["value"] == 0.5).all()


def test_figures_carry_the_stamps_in_their_size(demo_run, full_run):
    sizes = []
    for fake, name in ((demo_run, "roc-convgan.png"), (full_run, "roc-ddim.png")):
        make_report(fake.write())
        sizes.append(struct.unpack(">II", (fake.folder / "figures" / name).read_bytes()[16:24]))
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] > sizes[1][1]  # room for the stamps at the foot


def test_file_names_are_safe_and_differ():
    names = [file_name("roc", n) for n in ("ldm", "../ldm", "a/b", "a_b", "é", "x" * 200)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"roc-[A-Za-z0-9._-]+\.png", n) and len(n) < 90 for n in names)


def test_a_cell_is_split_into_number_and_interval():
    assert CellText.of("88.01 [87.30, 88.70] †") == CellText("88.01 †", "[87.30, 88.70]")
    assert CellText.of("n/c") == CellText("n/c")
    assert CellText.of("+0.50") == CellText("+0.50")


def test_importing_reports_is_light():
    code = (
        "import sys, reports.report, reports.compare\n"
        "heavy = [m for m in ('torch', 'pandas', 'sklearn', 'matplotlib', 'mlflow', 'ray') if m in sys.modules]\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_does_not_scroll_sideways_on_a_phone(full_run, tmp_path):
    folder = full_run.write()
    make_report(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    probe = "<script>document.title = document.documentElement.scrollWidth + ' ' + innerWidth</script></body>"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html).replace("</body>", probe)
    (tmp_path / "probe.html").write_text(html, encoding="utf-8")
    frame = '<iframe src="probe.html" style="width:390px;height:800px;border:0"></iframe>'
    reader = "<script>onload = () => { document.title = frames[0].document.title }</script>"
    (tmp_path / "frame.html").write_text(frame + reader, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
               f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
               (tmp_path / "frame.html").as_uri()]  # fmt: skip
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    scroll, inner = re.search(r"<title>(\d+) (\d+)</title>", done.stdout).groups()
    assert int(scroll) <= int(inner) == 390
