import json
import signal
import time

import pytest
import tensorflow as tf

from official import training_loop
from official.errors import RunError
from official.interrupts import Interrupts


class Run:
    """A run whose step t (from 1) has the loss t, and notes what the loop asks of it."""

    def __init__(self, model_dir):
        self.model_dir, self.saved, self.reported = model_dir, [], []
        self.calls = []  # the number of steps in each
        self.at = {}  # what happens in a step, a report, or while waiting for a batch
        self.loss = float

    def step(self, number):
        self.at.get(("step", number), lambda: None)()
        return {"loss_w": tf.constant(self.loss(number))}

    def steps(self, *arguments):
        self.calls.append(len(arguments))
        return [self.step(*own) for own in arguments]

    def batches(self, start):
        number = start
        while True:
            number += 1
            self.at.get(("batch", number), lambda: None)()
            yield (number,)

    def report(self, done):
        self.at.get(("report", done), lambda: None)()
        self.reported.append(done)
        return {"val_miou": 0.5, "path": [0, 1]}

    def save(self, step):
        if step not in self.saved:
            self.saved.append(step)

    def run(self, start=0, total=10, save_every=3, report_every=4, steps_per_loop=1, **more):
        return training_loop.run(
            "search",
            self.steps,
            self.batches(start),
            self.report,
            model_dir=str(self.model_dir),
            start_step=start,
            total_steps=total,
            epoch_steps=2,
            batch_size=8,
            save=self.save,
            save_every=save_every,
            report_every=report_every,
            steps_per_loop=steps_per_loop,
            **more,
        )

    def interrupted(self, **options):
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as stop:
            self.run(**options)
        assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
        return stop.value.code

    def rows(self):
        text = (self.model_dir / "history.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def terminate():
    signal.raise_signal(signal.SIGTERM)


def test_saves_and_reports_when_due_and_at_the_end(run):
    rows = run.run()
    assert run.saved == [3, 6, 9, 10] and run.reported == [4, 8, 10]
    assert rows == run.rows()
    assert [(row["step"], row["epoch"]) for row in rows] == [(4, 2.0), (8, 4.0), (10, 5.0)]
    # Means since the last report: of 1 2 3 4, of 5 6 7 8, of 9 10.
    assert [row["loss_w"] for row in rows] == [2.5, 6.5, 9.5]
    for row in rows:
        assert row["val_miou"] == 0.5 and row["path"] == [0, 1]
        assert row["images_per_s"] > 0 and 0 <= row["wait_share"] <= 1
    assert list((run.model_dir / "summaries").iterdir())


def test_says_when_a_graph_is_built_and_how_it_ended(run, capsys):
    batches = run.batches(0)
    run.batches = lambda start: (next(batches) * (1 if n < 5 else 2) for n in range(start, 10))
    step = run.step
    run.step = lambda number, *_: step(number)
    run.run(total=10)
    lines = capsys.readouterr().err.splitlines()
    # The first step, and the first that is given two batches.
    assert [line for line in lines[1:-1] if "left" not in line] == [
        f"search: {training_loop.BUILDING}"
    ] * 2
    assert lines[-1].startswith("search: 10 of 10 steps in 0 s")
    assert lines[-1].endswith(", loss_w 10.0000, val mIoU 0.500")


def test_time_left_knows_passes_and_reports(run, monkeypatch):
    made = {}

    class Noted(training_loop.Progress):
        def __init__(self, *arguments, **options):
            made.update(options)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(training_loop, "Progress", Noted)
    run.run(start=2, passes=lambda step: 1 if step < 6 else 3)
    # Steps 2..5 and 6..9; reports at 4, 8 and 10.
    assert (made["work"], made["pauses"]) == (4 + 3 * 4, 3)


def test_the_rate_is_that_of_steps_whose_graph_was_there(run):
    run.at["step", 1] = lambda: time.sleep(0.5)
    for number in (2, 3, 4):
        run.at["step", number] = lambda: time.sleep(0.01)
    rows = run.run(total=4)
    # 8 images in 10 ms; with the first step it would be 4 * 8 images in 0.53 s, 60 a second.
    assert 150 < rows[0]["images_per_s"] < 850
    run.at["step", 5] = lambda: time.sleep(0.5)
    rows = run.run(start=4, total=5)  # nothing else is known
    assert rows[1]["images_per_s"] < 17


def test_several_steps_a_call_end_where_something_is_due(run):
    rows = run.run(steps_per_loop=3)
    # Saves at 3 6 9, reports at 4 8, the end at 10.
    assert run.calls == [3, 1, 2, 2, 1, 1]
    assert run.saved == [3, 6, 9, 10] and run.reported == [4, 8, 10]
    assert [row["loss_w"] for row in rows] == [2.5, 6.5, 9.5]


def test_every_step_of_a_call_is_checked(run):
    run.loss = lambda number: float("nan") if number == 5 else number
    with pytest.raises(RunError, match="loss_w is nan at step 5"):
        run.run(steps_per_loop=4, save_every=20, report_every=20)
    assert run.calls == [4, 4, 2] and run.saved == []


def test_a_loss_of_the_second_phase_is_averaged_over_its_own_steps(run):
    step = run.step
    run.step = lambda number: step(number) | ({"loss_arch": tf.constant(7.0)} if number > 3 else {})
    rows = run.run(total=4)
    assert (rows[0]["loss_w"], rows[0]["loss_arch"]) == (2.5, 7.0)


@pytest.mark.parametrize("number", [1, 4, 5, 6])
def test_sigterm_in_a_step_ends_it_and_saves(run, number, capsys):
    run.at["step", number] = terminate
    if number == 1:  # Nothing to save yet, and the first step can take minutes: at once.
        assert run.interrupted() == 128 + 15 and run.saved == []
    else:
        assert run.interrupted() == 128 + 15
        assert run.saved == [step for step in (3,) if step < number] + [number]
    said = f"stopped and saved at step {number}" if number > 1 else "stopped before the first step"
    assert f"{said}: the same command" in capsys.readouterr().err
    # No report of a step that was interrupted; when the run goes on, one that was due is made.
    assert run.reported == [step for step in (4,) if step < number]
    run.at = {}
    run.run(start=run.saved[-1] if run.saved else 0)
    assert run.reported == [4, 8, 10] and [row["step"] for row in run.rows()] == [4, 8, 10]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_that_ends_a_run_saves(run, number):
    run.at["step", 5] = lambda: signal.raise_signal(number)
    assert run.interrupted() == 128 + number and run.saved == [3, 5]


def test_a_signal_that_is_ignored_stays_so(run):
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        run.at["step", 5] = lambda: signal.raise_signal(signal.SIGHUP)
        assert [row["step"] for row in run.run()] == [4, 8, 10]
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_signal_in_a_save_comes_before_the_report(run):
    save = run.save
    run.save = lambda step: (save(step), terminate() if step == 4 else None)
    assert run.interrupted(save_every=2) == 143
    assert run.saved == [2, 4] and run.reported == []


class Together(Interrupts):
    """As workers.Crew: all obey one signal, after the same step; it ends them in a report."""

    raises = False

    def __init__(self, stop_at):
        super().__init__()
        self.stop_at, self.asked = stop_at, []

    def agree(self, step):
        self.asked.append(step)
        return signal.SIGHUP if step == self.stop_at else None


def test_workers_stop_where_they_agree_and_save_before_each_report(run):
    together = Together(stop_at=7)
    with pytest.raises(SystemExit) as stop:
        run.run(interrupts=together)
    assert stop.value.code == 128 + signal.SIGHUP
    assert together.asked == [0, 1, 2, 3, 4, 5, 6, 7]
    assert run.saved == [3, 4, 6, 7] and run.reported == [4]


def test_workers_agree_once_more_when_all_is_done(run):
    together = Together(stop_at=None)
    run.run(start=8, interrupts=together)
    assert together.asked == [8, 9, 10, 10] and run.saved == [9, 10]


def test_sigterm_in_a_report_cuts_it_short_and_saves(run):
    run.at["report", 4] = terminate
    assert run.interrupted() == 143
    assert run.saved == [3, 4] and run.reported == [] and run.rows() == []
    run.at = {}
    run.run(start=4)
    rows = run.rows()
    assert [row["step"] for row in rows] == [4, 8, 10]
    assert rows[0]["val_miou"] == 0.5 and "loss_w" not in rows[0]  # the steps before are unknown


def test_ctrl_c_while_waiting_for_the_first_batch(run):
    run.at["batch", 6] = lambda: signal.raise_signal(signal.SIGINT)
    assert run.interrupted(start=5) == 130
    assert run.saved == []


def test_sigterm_in_the_last_report_is_made_up_for(run):
    run.at["report", 10] = terminate
    assert run.interrupted() == 143 and run.saved == [3, 6, 9, 10]
    run.at = {}
    run.run(start=10)
    assert [row["step"] for row in run.rows()] == [4, 8, 10]
    run.run(start=10)  # complete now: nothing is made again
    assert run.reported == [4, 8, 10]


@pytest.mark.parametrize(("bad", "saved"), [(3, []), (5, [3]), (10, [3, 6, 9])])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(run, bad, saved):
    run.loss = lambda number: float("nan") if number >= bad else float(number)
    with pytest.raises(RunError, match=rf"loss_w is nan at step {bad}; .* --learning_rate"):
        run.run()
    assert run.saved == saved and bad not in run.reported


def test_going_on_from_an_earlier_step_drops_the_reports_after_it(run):
    run.run()
    assert [row["step"] for row in run.run(start=6)] == [4, 8, 10]
    assert [row["step"] for row in run.rows()] == [4, 8, 10]
    assert run.reported == [4, 8, 10, 8, 10]


def test_a_line_that_a_kill_cut_off_is_left_out(run):
    run.run()
    history = run.model_dir / "history.jsonl"
    history.write_text(history.read_text()[:-20])
    assert [row["step"] for row in training_loop.read_history(str(run.model_dir))] == [4, 8]
    run.run(start=9)
    assert [row["step"] for row in run.rows()] == [4, 8, 10]
    assert training_loop.read_history(str(run.model_dir / "nowhere")) == []


def test_a_further_worker_writes_nothing(run):
    run.run(total=4)
    before = (run.model_dir / "history.jsonl").read_bytes()
    training_loop.run(
        "search",
        run.steps,
        run.batches(0),
        run.report,
        model_dir=str(run.model_dir),
        start_step=0,
        total_steps=2,
        epoch_steps=2,
        batch_size=8,
        save=run.save,
        save_every=1,
        report_every=1,
        writes=False,
    )
    assert (run.model_dir / "history.jsonl").read_bytes() == before


@pytest.mark.parametrize(("where", "good"), [(("batch", 6), 5), (("report", 4), 4)])
def test_bad_data_cost_no_step(run, where, good):
    # With save_every 3, step 5 (or 4) would be lost if only what was due had been saved.
    def bad_data():
        raise RunError("a bad record")

    run.at[where] = bad_data
    with pytest.raises(RunError, match="a bad record"):
        run.run()
    assert run.saved == [3, good]


def test_nothing_is_saved_after_a_loss_that_is_not_finite(run):
    run.loss = lambda number: float("nan") if number == 5 else float(number)
    run.at["batch", 6] = lambda: (_ for _ in ()).throw(RunError("a bad record"))
    with pytest.raises(RunError, match="loss_w is nan at step 5"):
        run.run()
    assert run.saved == [3]
