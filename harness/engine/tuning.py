"""Runs the trials of a sweep under Ray Tune: an actor a trial, as many at once as there is room for.

Tune gives places, starts again what died with its worker, and hears the objective after every epoch. What it knows is
thrown away at the end: which values a trial has, who is stopped and what is left to do follow from the store alone
(`trials`, `halving`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from harness.api.errors import HarnessError
from harness.api.events import Event, Listener
from harness.engine.cluster.connect import check_address, connected
from harness.engine.cluster.nodes import Word, check_nodes, left_word, require_room, require_seen
from harness.engine.training_job import files_of
from harness.engine.trials import CRASHED, Plan, Trial, crash_file, run_trial
from harness.results.files import to_json, write_atomic

RESTARTS = 2
"""How often a trial whose worker died is started again within one command."""
QUIET = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths stay what they are
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the sweep here, as everywhere
    "RAY_AIR_NEW_OUTPUT": "0",  # the old reporter says nothing where it is told so
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Set where the user has not; Ray's workers get them too."""


def run_trials(
    plan: Plan,
    trials: Sequence[Trial],
    emit: Listener,
    *,
    concurrent: int | None,
    gpus: float,
    address: str | None,
    scratch: Path,
) -> dict[int, dict[str, Any]]:
    """Run trials, the lowest numbers first; why each that crashed did so. Events: ``trial`` (number, epoch, objective,
    state) after every epoch and at the end of a trial.

    Args:
        concurrent: trials at once; None: as many as there are CPUs (and GPUs) for.
        gpus: of one trial; 0 on a CPU.
        address: of a running cluster; None: a Ray of our own.
        scratch: a folder that all nodes see, for Tune's own state; removed at the end.

    Raises:
        ConfigError: no Ray, no cluster, or no room for a single trial.
        StoreError, ClusterError: a node that does not see the store, lacks images or weights, or does not answer.
        HarnessError: what is no trial's own fault, as the trial met it first.
        KeyboardInterrupt: asked to stop; checkpoints and values are in the store.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    plan.crashed.mkdir(parents=True, exist_ok=True)
    needs = {"CPU": float(plan.threads)} | ({"GPU": gpus} if gpus else {})
    files = [file for trial in trials for file in files_of(trial.work)]
    check_address(address)
    with connected(address) as ray, left_word(plan.store, files) as word, _stoppable():
        check_nodes(ray, word)
        require_room(ray, needs, 1, "trial", "lower --threads" + (", or state `gpus` in the sweep" if gpus else ""))
        try:
            _fit(plan, trials, emit, concurrent, needs, word, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    crashed = {}
    for trial in trials:
        path = crash_file(plan.crashed, trial.number)
        if path.is_file():
            crashed[trial.number] = json.loads(path.read_text())
            _raise_if_ours(crashed[trial.number])
    return crashed


def _fit(
    plan: Plan, trials: Sequence[Trial], emit: Listener, concurrent: int | None, needs: Mapping[str, float],
    word: Word, scratch: Path,
) -> None:  # fmt: skip
    from ray import tune

    class Told(tune.Callback):
        """Passes on what trials tell, and enters those that Tune gave up, or that lie where the store is not."""

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
            if UNFIT in result:
                _enter_fatal(plan, int(trial.config["number"]), result[UNFIT])
            emit(Event("trial", {"number": trial.config["number"], **{k: result.get(k) for k in _TOLD}}))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            number = int(trial.config["number"])
            why = f"its worker died {RESTARTS + 1} times (killed, out of memory, or its machine is gone)"
            if not crash_file(plan.crashed, number).is_file():
                _enter_crash(plan, number, {"what": why, "traceback": str(trial.get_error() or "")})
            emit(Event("trial", {"number": number, "epoch": None, "objective": None, "state": CRASHED}))

    class Fatal(tune.Stopper):
        """Ends the sweep when a trial met something that is no fault of its own."""

        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return (plan.crashed / FATAL).is_file()

    shared = {trial.number: trial for trial in trials}
    asked = {name.lower(): need for name, need in needs.items()}  # Tune's names
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_in_actor, plan=plan, trials=shared, word=word), asked),
        param_space={"number": tune.grid_search([trial.number for trial in trials])},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrent, reuse_actors=True, trial_dirname_creator=_folder_of
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(scratch.resolve()), verbose=0, callbacks=[Told()], stop=Fatal(),
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
        ),
    )  # fmt: skip
    tune_log = logging.getLogger("ray.tune")
    before = tune_log.level
    tune_log.setLevel(logging.CRITICAL)  # what failed is said by us
    try:
        tuner.fit()
    finally:
        tune_log.setLevel(before)


_TOLD = ("epoch", "objective", "state")
FATAL = "fatal"
UNFIT = "unfit"
"""Name of what a trial reports that lies on an unfit node: it cannot leave word in a store that it does not see."""


def _folder_of(trial: Any) -> str:
    return f"trial-{trial.config['number']}"


def _in_actor(config: Mapping[str, Any], plan: Plan, trials: Mapping[int, Trial], word: Word) -> None:
    """A trial in its actor. Errors are written down and not raised: Tune would only try again. The node is looked at
    first: it may have joined after the others were."""
    from ray import tune

    from harness.engine.inline import pin_numerics

    number = int(config["number"])
    state = CRASHED
    try:
        require_seen(word)
    except HarnessError as error:
        tune.report({"epoch": None, "objective": None, "state": state, UNFIT: _told(error)})
        return
    pin_numerics(plan.threads)
    try:
        state = run_trial(plan, trials[number], tune.report)
    except HarnessError as error:
        _enter_fatal(plan, number, _told(error))
    except Exception as error:
        _enter_crash(plan, number, {"what": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
    tune.report({"epoch": None, "objective": None, "state": state})


def _told(error: HarnessError) -> dict[str, Any]:
    return {"what": error.what, "where": error.where, "fix": error.fix}


def _enter_fatal(plan: Plan, number: int, document: Mapping[str, Any]) -> None:
    """Enter what ends the sweep."""
    _enter_crash(plan, number, document)
    write_atomic(plan.crashed / FATAL, b"")


def _enter_crash(plan: Plan, number: int, document: Mapping[str, Any]) -> None:
    write_atomic(crash_file(plan.crashed, number), to_json(document))


def _raise_if_ours(document: Mapping[str, Any]) -> None:
    if "fix" in document:
        raise HarnessError(document["what"], document["where"], document["fix"])


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the sweep as SIGINT does; Ray would leave with a code of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
