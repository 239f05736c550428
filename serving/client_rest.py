"""Asks a TensorFlow Serving by REST for the segmentation of a picture; needs Python alone.

python serving/client_rest.py street.jpg [--server=http://localhost:8501] [--model=street]
    [--overlay=street_overlay.png] [--labels=street_labels.png]
"""

import argparse
import base64
import contextlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path


def segment(picture: bytes, server: str, model: str, timeout: float = 60.0) -> dict[str, bytes]:
    """Asks for `serve_png`.

    Args:
        picture: a PNG or JPEG file.
        server: such as http://localhost:8501.
        model: its name there.
        timeout: seconds to wait.

    Returns:
        PNG files: `label_png_bytes`, whose grey values are labels, and `overlay_png_bytes`.

    Raises:
        RuntimeError: the server cannot be reached, or its answer is an error; with its words.
    """
    encoded = base64.b64encode(picture).decode()
    body = {"signature_name": "serve_png", "inputs": {"image_bytes": [{"b64": encoded}]}}
    url = f"{server.rstrip('/')}/v1/models/{model}:predict"
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            outputs = json.load(response)["outputs"]
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(said)["error"]
        raise RuntimeError(f"{url} answers: {' '.join(said.split())}") from None
    except (OSError, ValueError, KeyError) as error:
        raise RuntimeError(f"no answer from {url}: {error}") from None
    return {name: base64.b64decode(values[0]["b64"]) for name, values in outputs.items()}


def run(segment: Callable[[bytes, str, str], dict[str, bytes]], server: str, words: str) -> None:
    """Reads the command line, writes what was asked for, and says where.

    Args:
        segment: as the one above.
        server: the address if none is given.
        words: what the command does.
    """
    parser = argparse.ArgumentParser(description=words)
    parser.add_argument("picture", type=Path, help="a PNG or JPEG file")
    parser.add_argument("--server", default=server)
    parser.add_argument("--model", default="street")
    parser.add_argument("--overlay", type=Path, help="default: PICTURE_overlay.png")
    parser.add_argument("--labels", type=Path, help="also write the label map there")
    asked = parser.parse_args()
    overlay = asked.overlay or Path(f"{asked.picture.stem}_overlay.png")
    for path in filter(None, (overlay, asked.labels)):
        if path.resolve() == asked.picture.resolve():
            sys.exit(f"error: {path} is the picture, and would be written over: name another")
    try:
        found = segment(asked.picture.read_bytes(), asked.server, asked.model)
        overlay.write_bytes(found["overlay_png_bytes"])
        if asked.labels:
            asked.labels.write_bytes(found["label_png_bytes"])
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(overlay)


if __name__ == "__main__":
    run(segment, "http://localhost:8501", "Segments a picture by TensorFlow Serving's REST.")
