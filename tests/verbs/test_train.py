"""`harness train` as a user runs it: what it leaves, what it does not do twice, and how it ends when it cannot."""

from __future__ import annotations

import json
import re
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from plugin_support import Cli, Done, stop_when, suite_document
from tiny_training import FIXED, JOINT, LAM, recipe, released_layout

from harness.results.training import read_training

fdf_root = released_layout()


@dataclass(frozen=True)
class Trained:
    """An undisturbed training by a process: its folder of work, how it ended, and what it said."""

    folder: Path
    recipe: Path
    done: Done

    @property
    def training(self) -> Path:
        return self.folder / self.done.document["folder"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Trained:
    """The bi-level recipe, trained once; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    path = recipe(folder)
    done = Cli(folder, ())("train", path, "--data-root", photographs, "--json", *FIXED)
    assert done.code == 0, done.text
    return Trained(folder, path, done)


# what it leaves ------------------------------------------------------------------------------------------------------


def test_the_answer_names_the_weights_and_the_folder(trained: Trained) -> None:
    answer = trained.done.document
    weights = trained.folder / answer["checkpoint"]
    assert weights.stem == answer["sha256"]
    assert weights.parent == trained.folder / ".blades-store/blobs"
    assert trained.training == trained.folder / "runs" / "train-lam" / answer["key"][:16]
    assert answer["trained"] is True
    assert set(answer["metrics"]) >= {"coarse_accuracy"}
    assert f"sqlite:///{trained.folder / 'mlflow.db'}" in answer["mlflow_ui"]
    assert not (trained.folder / ".blades-store/training" / answer["key"]).exists()


def test_the_training_folder_is_whole(trained: Trained) -> None:
    read, answer = read_training(trained.training), trained.done.document
    assert (read.record.key, read.record.sha256) == (answer["key"], answer["sha256"])
    assert read.record.metrics == answer["metrics"]
    assert read.record.recipe["settings"]["lambda_lr"] == 0.01
    assert read.record.protocol["outer_batch"] == "heldout"
    assert (read.record.resumed, len(read.record.sessions)) == (0, 1)
    assert read.record.command[:2] == ["harness", "train"]
    assert "torch" in read.record.environment["packages"]
    steps = list(range(1, answer["steps"] + 1))
    assert read.history["step"].tolist() == read.speed["step"].tolist() == steps
    for column in ("lr", "loss", "loss/face_coarse", "lambda/face_fine", "hypergradient/face_fine", "outer_loss"):
        assert read.history[column].notna().all(), column
    assert read.history["audit/exact/face_coarse"].notna().sum() == -(-len(steps) // 10)
    assert read.select["epoch"].tolist() == [2, 4, 5]
    assert (read.speed["images_per_second"] > 0).all()
    figures = {p.name for p in (trained.training / "figures").iterdir()}
    assert figures == {"losses.png", "lambda.png", "hypergradient.png"}


def test_mlflow_has_what_the_folder_has(trained: Trained) -> None:
    read = read_training(trained.training)
    client = MlflowClient(tracking_uri=f"sqlite:///{trained.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("train-lam")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["settings.lambda_lr"] == "0.01"
    assert run.data.tags["blades.sha256"] == read.record.sha256
    for metric, column in (("lambda/face_coarse", "lambda/face_coarse"), ("loss/face_fine", "loss/face_fine")):
        found = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric))
        assert found == list(zip(read.history["step"], read.history[column], strict=True))


def test_progress_says_epochs_and_ends_with_the_metrics(trained: Trained) -> None:
    assert "train lam: 5 epochs to do" in trained.done.err
    assert re.search(r"train lam: after epoch 2, coarse_accuracy \d", trained.done.err)
    assert re.search(r"train lam: done, .*coarse_accuracy", trained.done.err)


def test_decoding_is_told_before_the_first_step_and_a_second_training_finds_it_done(tmp_path, photographs) -> None:
    from harness.verbs.train import TrainRequest, train_one

    def heard(*settings: str) -> list[tuple[str, str, int, int]]:
        events = []
        train_one(
            TrainRequest(
                str(recipe(tmp_path, JOINT)), photographs, out=tmp_path / "runs", store=tmp_path / "store", threads=1,
                device="cpu", tracking_uri="off", settings=settings,
            ),
            emit=events.append,
        )  # fmt: skip
        kinds = [event.kind for event in events]
        early = events[kinds.index("stage_start") : kinds.index("train_step")]
        said = [event.fields for event in early if event.kind == "progress"]
        return [(f["stage"], f["unit"], f["done"], f["total"]) for f in said]

    first = heard()
    total = first[-1][3]
    assert total > 40
    assert [f[2] for f in first] == [*range(0, total, 16), total]
    assert {f[:2] for f in first} == {("recipe joint: decoding", "images")}
    assert heard("lr=0.01") == []


# not twice, and changed ----------------------------------------------------------------------------------------------


def test_what_is_stored_is_not_trained_again_and_a_setting_makes_another(here, tmp_path: Path, photographs) -> None:
    words = ("train", recipe(tmp_path, JOINT), "--data-root", photographs, "--tracking-uri", "off", *FIXED)
    first = here(*words, "--json").document
    again = here(*words)
    assert again.code == 0, again.text
    assert "nothing was trained" in again.out
    assert first["sha256"] in again.out
    folder = Path(first["folder"])
    assert f"folder:     {folder}" in again.out
    assert f"`weights: recipe:{tmp_path / 'joint.yaml'}` in a suite" in again.out
    assert not list(folder.glob("figures/lambda.png"))  # fixed weights have no trajectory
    other = here(*words, "--set", "lr=0.01", "--json").document
    assert other["key"] != first["key"]
    assert Path(other["folder"]).parent == folder.parent
    assert read_training(Path(other["folder"])).record.stamps == ["CHANGED: lr=0.01"]


def test_another_interval_of_checkpoints_is_the_same_training(here, tmp_path: Path, photographs: Path) -> None:
    words = ("train", recipe(tmp_path, JOINT), "--data-root", photographs, "--tracking-uri", "off", "--json", *FIXED)
    first = here(*words, "--every", "1").document
    assert here(*words, "--every", "50", "--store", "other").document["sha256"] == first["sha256"]
    assert not Path("mlflow.db").exists()


# cut off -------------------------------------------------------------------------------------------------------------


def test_an_interrupt_is_gone_on_from_to_the_same_weights(trained: Trained, tmp_path: Path, photographs: Path) -> None:
    cli = Cli(tmp_path / "work", ())
    words = ("train", trained.recipe, "--data-root", photographs, "--tracking-uri", "off", "--json", *FIXED)
    begun = cli.folder / ".blades-store/training" / trained.done.document["key"]
    stopped = stop_when(cli.start(*words), lambda: bool(list(begun.glob("step-*/state.json"))), signal.SIGINT)
    assert stopped.code == 130, stopped.text
    assert "the same command goes on from there" in stopped.err
    assert "Traceback" not in stopped.text
    assert not (cli.folder / "runs").exists()
    done = cli(*words)
    assert done.code == 0, done.text
    assert "going on after step" in done.err
    answer = done.document
    assert answer["sha256"] == trained.done.document["sha256"]
    folder = cli.folder / answer["folder"]
    assert (folder / "history.csv").read_bytes() == (trained.training / "history.csv").read_bytes()
    assert (folder / "select.csv").read_bytes() == (trained.training / "select.csv").read_bytes()
    read = read_training(folder)
    assert read.record.resumed == 1
    assert read.record.sessions[1].first_step > 1
    assert read.speed["step"].tolist() == read.history["step"].tolist()


# what is done with it ------------------------------------------------------------------------------------------------


def test_a_suite_finds_what_train_made_and_its_run_folder_has_the_training(
    here, trained, tmp_path, photographs
) -> None:
    row = {"weights": f"recipe:{trained.recipe}", **LAM["options"], "components": 2}
    document = suite_document({"blades-oc": row}, data={"photographs": ["celeba-face"], "generators": ["ldm", "ddim"]})
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(document))
    store = trained.folder / ".blades-store"
    done = here("run", tmp_path / "suite.yaml", "--data-root", photographs, "--device", "cpu", "--store", store,
                "--tracking-uri", "off", "--json")  # fmt: skip
    assert done.code == 0, done.text
    assert "epochs to do" not in done.err
    run = Path(done.document["run_dir"])
    read = read_training(run / "training" / "lam")
    assert read.record.sha256 == trained.done.document["sha256"]
    pd.testing.assert_frame_equal(read.history, read_training(trained.training).history)
    assert (run / "training/lam/figures/lambda.png").is_file()
    assert "lam: task weights λ by step" in (run / "report.html").read_text()


def test_report_draws_again_and_logs_later_what_a_server_that_was_down_missed(here, tmp_path, photographs) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{probe.getsockname()[1]}"
    done = here("train", recipe(tmp_path, JOINT), "--data-root", photographs, "--tracking-uri", down, "--json", *FIXED)
    assert done.code == 0, done.text
    folder = Path(done.document["folder"])
    assert f"harness report {folder} --log" in done.err
    assert done.document["mlflow_ui"] is None
    (folder / "figures/losses.png").unlink()
    later = here("report", folder, "--log")
    assert later.code == 0, later.text
    assert (folder / "figures/losses.png").is_file()
    assert "mlflow ui --backend-store-uri" in later.out
    client = MlflowClient(tracking_uri=f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    assert client.get_experiment_by_name("train-joint") is not None


def test_the_released_layout_is_trained_on(here, tmp_path: Path, fdf_root: Path) -> None:
    released = {**JOINT, "recipe": "faces", "data": {"layout": "released"}, "batch_size": 4}
    words = ("train", recipe(tmp_path, released), "--data-root", fdf_root, "--tracking-uri", "off", "--json", *FIXED)
    done = here(*words)
    assert done.code == 0, done.text
    assert done.document["steps"] > 0
    stored = here(*words, "--set", "settings.source=stored", "--set", "settings.manipulations=[0,3]")
    assert stored.code == 0, stored.text
    assert stored.document["sha256"] != done.document["sha256"]


# bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "epoch=3"), "did you mean 'epochs'"),
        (("--set", "epochs=0"), "epochs"),
        (("--set", "settings.tasks=[nose]"), "nose"),
        (("--set", "settings.lambda_lr=0.1"), "lambda_lr"),
        (("--set", "step=backwards"), "step"),
        (("--set", "settings.weights={face_fines: 2}"), "face_fines"),
        (("--set", "options.encoder=huge"), "huge"),
        (("--set", "detector=blades-xc"), "did you mean"),
        (("--set", "epochs"), "epochs"),
        (("--data-root", "nowhere"), "the data root is not there"),
        (("--set", "data.layout=released"), "training"),
        (("--export", "weights.bin"), ".safetensors, or .pth"),
        (("--export", "weights"), ".safetensors, or .pth"),
        (("--profile", "demo"), "--data-root"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_what_cannot_be_meant_ends_with_a_reason_and_makes_no_training(
    here, refused, tmp_path: Path, photographs: Path, words: tuple[str, ...], said: str
) -> None:
    done = here("train", recipe(tmp_path, JOINT), "--data-root", photographs, *FIXED, *words)
    assert said in refused(done)
    assert not Path("runs").exists()
    assert not Path("mlflow.db").exists()


def test_a_recipe_that_is_not_there_and_data_that_is_not_there_are_named(here, refused, tmp_path: Path) -> None:
    assert "demo_blades" in refused(here("train", "demo_bladez", "--profile", "demo"))
    assert "./data" in refused(here("train", recipe(tmp_path, JOINT)))
    assert "full" in refused(here("train", recipe(tmp_path, JOINT), "--profile", "paper"))


def test_a_name_that_is_a_path_stays_in_the_folder_of_trainings(here, tmp_path: Path, photographs: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(yaml.safe_dump({**JOINT, "recipe": "../../../evil"}))
    done = here("train", path, "--data-root", photographs, "--tracking-uri", "off", "--json", *FIXED)
    assert done.code == 0, done.text
    folder = Path(done.document["folder"])
    assert ".." not in folder.parts
    assert folder.parts[0] == "runs"
    assert {p.name for p in tmp_path.iterdir()} == {"work", "evil.yaml"}


def test_a_folder_that_is_no_training_is_refused_by_report(here, refused, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "training.json").write_text(json.dumps({"name": "x"}))
    assert "no record of a training" in refused(here("report", tmp_path / "bad"))


# what the documentation says -----------------------------------------------------------------------------------------


def _listed(heading: str) -> set[str]:
    """First words of the rows of a section's tables in docs/training.md."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)`", section, re.M))


def test_the_documentation_lists_every_key_of_a_recipe_and_of_joint_training() -> None:
    from detectors.blades.joint import JointSettings
    from harness.api.training import Recipe

    assert _listed("Recipes") == {*Recipe.model_fields, "base"}
    assert _listed("Settings of joint training") == set(JointSettings.model_fields)


def test_the_documentation_lists_every_file_of_the_folder(trained: Trained) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
    for path in trained.training.rglob("*"):
        if path.is_file():
            assert f"`{path.relative_to(trained.training).as_posix()}`" in text, path
