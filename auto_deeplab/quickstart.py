"""The whole road on toy street scenes, by the commands that a user would type.

    python auto_deeplab/quickstart.py --output_dir=build/quickstart

Paints scenes, converts, searches, retrains, evaluates, draws predictions, exports a SavedModel
and asks it one question in a process that has TensorFlow alone. Says at the start what it will do,
prints each command before it runs, and ends with a page to look at, index.html. Given again after
an interruption, it goes on where it stopped.
"""

import argparse
import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__" and not __package__:
    # Python puts this file's folder first; modules are found from the repository's root.
    sys.path[0] = str(ROOT)

from auto_deeplab.report import quickstart_page  # noqa: E402
from official.command_line import errors_in_one_line  # noqa: E402
from official.files import write_atomically  # noqa: E402
from official.paths import parse_path  # noqa: E402
from official.progress import format_duration  # noqa: E402

SECONDS = {
    "paint scenes": 8,
    "convert": 4,
    "convert, half size": 4,
    "check": 4,
    "search": 60,
    "train": 130,
    "evaluate": 5,
    "predict": 5,
    "export": 5,
    "serve": 4,
}
"""What each stage takes on two idle CPU cores, about."""

HELD_OUT = "leftImg8bit/val/toyville"
"""Where, below the scenes, those are that neither search nor training sees."""

# What a server does with the SavedModel; nothing of this project is imported.
ASK = """
import sys, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
picture = tf.io.read_file(sys.argv[2])
labels = model.signatures["serve_bytes"](image_bytes=picture[None])["labels"]
names = open(sys.argv[1] + "/assets/labels.txt").read().splitlines()
shares = tf.math.bincount(tf.cast(labels, tf.int32), minlength=len(names)) / tf.size(labels)
top = tf.argsort(shares, direction="DESCENDING")[:4].numpy()
print("answer:", labels.dtype.name, tuple(labels.shape),
      ", ".join(f"{names[i]} {float(shares[i]):.0%}" for i in top))
"""


@dataclasses.dataclass
class Stage:
    """A step of the road.

    Attributes:
        name: one of SECONDS.
        command: what runs, in ROOT.
        product: if it is there, the stage need not run again; None: it is quick the second time.
    """

    name: str
    command: list[str]
    product: Path | None = None

    @property
    def shown(self) -> str:
        """The command as one would type it."""
        if self.name == "serve":
            return "python -I -c ..."
        return shlex.join(["python", *self.command[1:]])


def stages(out: Path) -> list[Stage]:
    """The road into `out`, which is relative to ROOT or absolute."""
    scenes, half, full = out / "scenes", out / "data_half", out / "data"
    found, trained = out / "search", out / "train"
    genotype, exported = found / "genotype.json", trained / "export" / "1"
    configs = Path("auto_deeplab/configs")

    def tool(name: str, *flags: str) -> list[str]:
        return [sys.executable, "-m", f"tfrecords_tools.{name}", *flags]

    def train(mode: str, *flags: str) -> list[str]:
        return [sys.executable, "auto_deeplab/train.py", f"--mode={mode}", *flags]

    convert = tool("convert", "--dataset=cityscapes", f"--source_dir={scenes}")
    on_half = (f"--data_dir={half}", f"--model_dir={found}")
    on_full = (f"--data_dir={full}", f"--model_dir={trained}")
    search_recipe, train_recipe = (
        f"--flagfile={configs / f'quickstart_{mode}.cfg'}" for mode in ("search", "train")
    )
    pictures = (f"--input={scenes / HELD_OUT}", f"--output_dir={out / 'predictions'}")
    return [
        Stage("paint scenes", tool("toy_scenes", f"--output_dir={scenes}"), scenes),
        Stage("convert", [*convert, f"--output_dir={full}"], full),
        Stage(
            "convert, half size", [*convert, f"--output_dir={half}", "--resize_factor=0.5"], half
        ),
        Stage("check", tool("check", f"--data_dir={full}", f"--figure={out / 'classes.png'}")),
        Stage("search", train("search", search_recipe, *on_half), genotype),
        Stage("train", train("train", train_recipe, f"--genotype={genotype}", *on_full)),
        Stage("evaluate", train("eval", *on_full)),
        Stage("predict", train("predict", f"--model_dir={trained}", *pictures)),
        Stage("export", train("export", f"--model_dir={trained}"), exported),
        Stage("serve", [sys.executable, "-I", "-c", ASK, str(exported)]),
    ]


class Times:
    """What the stages took until they were first done, kept in a file over interruptions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._taken = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def add(self, name: str, seconds: float, done: bool) -> None:
        """Notes one run of a stage."""
        before = self._taken.get(name, {"seconds": 0.0, "done": False})
        if not before["done"]:
            self._taken[name] = {"seconds": before["seconds"] + seconds, "done": done}
            write_atomically(self._path, json.dumps(self._taken, indent=1) + "\n")

    def seconds(self) -> dict[str, float]:
        """What is known, by the stages' names."""
        return {name: taken["seconds"] for name, taken in self._taken.items()}


def main() -> None:
    """Runs all stages in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output_dir", type=parse_path, default=Path("build/quickstart"))
    run(parser.parse_args().output_dir)


def run(output_dir: Path, more: Mapping[str, Sequence[str]] | None = None) -> None:
    """The whole road.

    Args:
        output_dir: where everything is made.
        more: further flags for stages, by their names.

    Raises:
        SystemExit: a stage failed (1), or Ctrl-C (130).
    """
    out = output_dir.resolve()
    if out.is_relative_to(ROOT):
        out = out.relative_to(ROOT)  # where the commands run, and shorter to read
    road = stages(out)
    for stage in road:
        stage.command += (more or {}).get(stage.name, ())
    minutes = round(sum(SECONDS.values()) / 60)
    print(f"From nothing to a served network: {len(road)} stages, about {minutes} minutes on two")
    print("idle CPU cores.")
    for number, stage in enumerate(road, start=1):
        print(f"{number:4}  {stage.name:<20}{format_duration(SECONDS[stage.name]):>12}")
    print(f"It ends with a page to look at, {out / 'index.html'}. If it is interrupted, the same")
    print("command goes on.", flush=True)

    (ROOT / out).mkdir(parents=True, exist_ok=True)
    times, answer = Times(ROOT / out / "times.json"), ""
    for number, stage in enumerate(road, start=1):
        head = f"\n== {number} of {len(road)}: {stage.name}"
        if stage.product is not None and (ROOT / stage.product).exists():
            print(f"{head}: done before, {stage.product}", flush=True)
            continue
        if stage.name == "serve":
            stage.command.append(str(min((ROOT / out / "scenes" / HELD_OUT).glob("*.png"))))
        print(f"{head}: {stage.shown}", flush=True)
        start = time.monotonic()
        code, heard = carry_out(stage)
        answer = heard or answer
        times.add(stage.name, time.monotonic() - start, code == 0)
        if code in (130, -signal.SIGINT):
            sys.exit(130)  # it has said so itself
        if code != 0:
            sys.exit(f"error: the stage {stage.name!r} failed; its message stands above")
    finish(out, road, times.seconds(), answer)


def carry_out(stage: Stage) -> tuple[int, str]:
    """Runs the command; returns its exit code and, of `serve`, what it answered."""
    # TensorFlow alone talks of itself on stderr; the other commands know how to silence it.
    quiet = stage.name == "serve"
    pipe = subprocess.PIPE if quiet else None
    with subprocess.Popen(stage.command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        while True:
            try:
                out, err = process.communicate()
                break
            except KeyboardInterrupt:
                pass  # the stage has heard it too, and saves what it has made
    if quiet:
        print(out, end="", flush=True)
    if quiet and process.returncode != 0:
        sys.stderr.write(err)
    return process.returncode, (out or "").strip()


def finish(out: Path, road: Sequence[Stage], seconds: Mapping[str, float], answer: str) -> None:
    """Writes the page, and says what there is now."""
    shown = {stage.name: stage.shown for stage in road}
    written = quickstart_page.write(out, ROOT, shown, seconds, answer)
    metrics = json.loads((ROOT / out / "train" / "metrics.json").read_text(encoding="utf-8"))
    print("\n== done")
    for name, taken in [*seconds.items(), ("all", sum(seconds.values()))]:
        print(f"{name:<20}{format_duration(taken):>12}")
    for name, path in (
        ("genotype", out / "search" / "genotype.json"),
        ("its pictures", out / "search" / "figures"),
        ("predictions", out / "predictions"),
        ("metrics", out / "train" / "metrics.json"),
        ("SavedModel", out / "train" / "export" / "1"),
        ("a page of it all", written),
    ):
        print(f"{name:<20}{path}")
    print(
        f"mIoU of the classes present, {metrics['num_images']} held-out scenes: "
        f"{metrics['miou_present']:.3f}"
    )
    print(f"Now look at {(ROOT / written).as_uri()}")


if __name__ == "__main__":
    with errors_in_one_line():
        main()
