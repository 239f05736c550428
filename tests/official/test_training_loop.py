import json
import signal
import time

import pytest
import tensorflow as tf

from official import training_loop
from official.errors import RunError
from official.interrupts import Interrupts


class StandInForCheckpoints:
    """Notes what the loop asks of official.checkpoints.Checkpoints."""

    def __init__(self):
        self.saved, self.best, self.notes = [], [], {}
        self.step, self.note = 0, ""

    def save(self, step, note=""):
        if step not in self.saved:
            self.saved.append(step)
            self.notes[step] = note
        self.step = step

    def restore(self, step):
        self.step, self.note = step, self.notes.get(step, "")

    def save_best(self, step):
        self.best.append(step)

    def best_step(self):
        return self.best[-1] if self.best else None

    def set_aside(self, after):
        moved = [step for step in self.saved if step > after]
        self.saved = [step for step in self.saved if step <= after]
        return [f"aside/ckpt-{step}" for step in moved]

    def latest(self):
        return f"ckpt-{self.saved[-1]}" if self.saved else None


class Run:
    """A run whose step t (from 1) has the loss t, and notes what the loop asks of it."""

    def __init__(self, model_dir):
        self.model_dir, self.reported, self.store = model_dir, [], StandInForCheckpoints()
        self.miou = lambda done: 0.5
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
        return {"val_miou": self.miou(done), "path": [0, 1]}

    @property
    def saved(self):
        return self.store.saved

    def run(self, start=0, total=10, save_every=3, report_every=4, steps_per_loop=1, **more):
        self.store.restore(start)
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
            store=self.store,
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


def test_reports_are_shown(run):
    class Shown:
        """Stands in for Summaries: notes the rows that it is given."""

        def __init__(self):
            self.before, self.after = None, []

        def start(self, rows):
            self.before = [row["step"] for row in rows]

        def add(self, row):
            self.after.append(row["step"])

    first, second, third = Shown(), Shown(), Shown()
    run.run(total=8, summaries=first)
    assert (first.before, first.after) == ([], [4, 8])
    run.run(start=6, total=10, summaries=second)
    assert (second.before, second.after) == ([4], [8, 10])
    run.run(start=10, total=12, summaries=third, writes=False)
    assert (third.before, third.after) == (None, [])


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
    save = run.store.save
    run.store.save = lambda step, note: (save(step, note), terminate() if step == 4 else None)
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


@pytest.mark.parametrize("together", [False, True])
def test_a_report_can_be_the_last_and_stays_so(run, together):
    """Reports are due at 4, 8 and 10; what is saved ends with the one that is enough."""

    def go(start):
        crew = {"interrupts": Together(stop_at=None)} if together else {}
        run.run(start=start, is_enough=lambda row: row["step"] >= 5, **crew)

    go(0)
    assert run.reported == [4, 8] and sum(run.calls) == 8
    assert run.saved == ([3, 4, 6, 8] if together else [3, 6, 8])
    go(8)
    assert run.reported == [4, 8] and sum(run.calls) == 8
    # A kill before the report: it is made again, and is the last one again.
    (run.model_dir / "history.jsonl").write_text("")
    go(8)
    assert run.reported == [4, 8, 8] and sum(run.calls) == 8
    assert [row["step"] for row in run.rows()] == [8]


def test_sigterm_in_a_report_cuts_it_short_and_saves(run):
    run.at["report", 4] = terminate
    assert run.interrupted() == 143
    assert run.saved == [3, 4] and run.reported == [] and run.rows() == []
    run.at = {}
    run.run(start=4)
    rows = run.rows()
    assert [row["step"] for row in rows] == [4, 8, 10]
    # The mean of 1 2 3 4, from the checkpoint; how long they took is not known.
    assert (rows[0]["val_miou"], rows[0]["loss_w"]) == (0.5, 2.5)
    assert "images_per_s" not in rows[0] and "resumed_within" not in rows[0]


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1001.0])
@pytest.mark.parametrize(
    ("bad", "kept", "aside"),
    # The loss of step 4 is that of the weights after step 3, which are on disk.
    [(3, [], None), (4, [], 3), (5, [3], None), (10, [3, 6], 9)],
)
def test_after_a_loss_that_is_not_good_what_led_there_is_set_aside(run, value, bad, kept, aside):
    run.loss = lambda number: value if number >= bad else float(number)
    told = []

    def explain(*what):
        told.append(what)
        return "; the remedy"

    with pytest.raises(RunError) as error:
        run.run(worst_loss=1000.0, explain=explain)
    said = f"search: loss_w is {value:.6g} at step {bad}"
    said += f"; what led there is kept as set_aside/ckpt-{aside}" if aside else ""
    assert str(error.value) == f"{said}; the remedy"
    assert told == [("loss_w", bad, f"ckpt-{kept[-1]}" if kept else None)]
    assert run.saved == kept and bad not in run.reported


def test_a_loss_from_within_the_step_says_nothing_of_what_is_on_disk(run):
    step = run.step
    run.step = lambda number: step(number) | {"loss_arch": tf.constant(1e9 if number == 4 else 1.0)}
    with pytest.raises(RunError, match=r"loss_arch is 1e\+09 at step 4(\n|$)"):
        run.run(worst_loss=1000.0)
    assert run.saved == [3]


def test_a_loss_that_is_large_but_good(run):
    run.loss = lambda number: 1000.0
    assert run.run(worst_loss=1000.0)[-1]["loss_w"] == 1000.0


def test_bad_steps_in_a_row(run, capsys):
    bad = {2, 5, 6}
    run.loss = lambda number: float("nan") if number in bad else float(number)
    rows = run.run(max_bad_steps=2)
    # Means of 1 3 4, of 7 8, of 9 10.
    assert [row["loss_w"] for row in rows] == [8 / 3, 7.5, 9.5]
    assert [row.get("left_out_steps") for row in rows] == [1, 2, None]
    warning = "search: loss_w is nan at step 6: the step changes nothing (2 in a row"
    assert warning in capsys.readouterr().err
    assert run.saved == [3, 6, 9, 10]
    bad.add(7)
    with pytest.raises(RunError, match="loss_w is nan at step 7"):
        run.run(max_bad_steps=2)


def test_bad_steps_are_counted_across_an_interruption(run):
    run.loss = lambda number: float("nan") if number in (5, 6, 7) else float(number)
    run.at["step", 6] = terminate
    assert run.interrupted(max_bad_steps=2) == 143
    run.at = {}
    with pytest.raises(RunError, match="loss_w is nan at step 7"):
        run.run(start=6, max_bad_steps=2)


def test_the_weights_of_the_best_report_are_kept(run):
    run.miou = {4: 0.2, 8: 0.6, 10: 0.6}.get
    run.run()
    assert run.store.best == [4, 8]  # 0.6 again is not better
    run.miou = {4: None, 8: 0.3, 10: 0.1}.get
    run.run(start=6)
    # The report of step 8 is gone: what was best then cannot be compared.
    assert run.store.best == [4, 8, 8]


def test_means_are_the_same_whoever_makes_the_report(run):
    whole = run.run()
    run.at["step", 6] = terminate
    run.interrupted()
    run.at = {}
    rows = run.run(start=6)
    assert [row["loss_w"] for row in rows] == [row["loss_w"] for row in whole]
    assert not any("resumed_within" in row for row in rows)
    run.store.notes = {}  # as checkpoints of earlier versions
    rows = run.run(start=6)
    # 7 8 instead of 5 6 7 8, which the report says; the next has all of its steps.
    assert [row["loss_w"] for row in rows] == [2.5, 7.5, 9.5]
    assert [row.get("resumed_within") for row in rows] == [None, True, None]


def test_reports_tell_what_is_saved(run):
    assert [row["saved"] for row in run.run()] == [3, 6, 10]


def test_sighup_is_obeyed_unless_it_is_ignored(run):
    run.at["step", 4] = lambda: signal.raise_signal(signal.SIGHUP)
    assert run.interrupted() == 129
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        run.run()
    finally:
        signal.signal(signal.SIGHUP, old)


def test_going_on_from_an_earlier_step_drops_the_reports_after_it(run):
    run.run()
    assert [row["step"] for row in run.run(start=6)] == [4, 8, 10]
    assert [row["step"] for row in run.rows()] == [4, 8, 10]
    assert run.reported == [4, 8, 10, 8, 10]


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
        store=run.store,
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
