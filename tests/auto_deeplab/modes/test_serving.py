"""What --mode=export wrote, in a stand-in for TensorFlow Serving, asked by serving/'s clients."""

import base64
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import zlib

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from official import warmup
from tests.command import ROOT, train_here

CLIENTS = ROOT / "serving"
SIGNATURES = ["serving_default", "serve_bytes", "serve_png"]


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def colours(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("models") / "export"
    done = train_here(
        "--mode=export", f"--model_dir={trained}", f"--export_dir={root}", "--max_pixels=100000",
        "--max_eval_images=1",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def server(exported):
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.stand_in_serving", exported],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env=quiet,
    ) as process:  # fmt: skip
        try:
            yield {**json.loads(process.stdout.readline()), "process": process}
        finally:
            process.kill()


def ask_grpc(server, signature, name, value):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "street", signature
    request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    with grpc.insecure_channel(f"127.0.0.1:{server['grpc']}") as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = service.Predict(request, timeout=60)
    return {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}


def ask_rest(server, body):
    """The status, and the answer."""
    url = f"http://127.0.0.1:{server['rest']}/v1/models/street:predict"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as got:
            return got.status, json.load(got)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def b64(content):
    return {"b64": base64.b64encode(content).decode()}


def test_the_warm_up_file_holds_a_request_for_each_signature(server, exported):
    assert (exported / "1" / warmup.FILE).stat().st_size < 10**6
    # The stand-in has run all before it said its ports.
    assert server["warmed"] == SIGNATURES


def test_clients_write_what_the_model_says(server, exported, tmp_path):
    image = colours(40, 56)
    (tmp_path / "street.png").write_bytes(encoded(image))
    model = tf.saved_model.load(str(exported / "1"))
    wanted = model.signatures["serve_png"](image_bytes=tf.constant([encoded(image)]))
    rest, address = f"http://127.0.0.1:{server['rest']}", f"127.0.0.1:{server['grpc']}"
    for name, where in (("client_rest.py", rest), ("client_grpc.py", address)):
        done = subprocess.run(
            [sys.executable, CLIENTS / name, "street.png", f"--server={where}", "--labels=l.png"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "street_overlay.png\n"), done.stderr
        overlay = (tmp_path / "street_overlay.png").read_bytes()
        assert overlay == wanted["overlay_png_bytes"][0].numpy()
        assert (tmp_path / "l.png").read_bytes() == wanted["label_png_bytes"][0].numpy()
        (tmp_path / "street_overlay.png").unlink()
    if shutil.which("curl"):
        done = subprocess.run(
            ["bash", CLIENTS / "client.sh", "street.png", "mine.png", rest],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "mine.png\n"), done.stderr
        assert (tmp_path / "mine.png").read_bytes() == overlay


def test_clients_give_the_servers_words_in_a_line(server, tmp_path):
    (tmp_path / "street.png").write_bytes(b"no picture")
    rest, address = f"http://127.0.0.1:{server['rest']}", f"127.0.0.1:{server['grpc']}"
    for name, where in (("client_rest.py", rest), ("client_grpc.py", address)):
        for picture, model, saying in (
            ("street.png", "street", "answers: "),
            ("street.png", "other", "not found"),
            ("nothing.png", "street", "nothing.png"),
        ):
            done = subprocess.run(
                [sys.executable, CLIENTS / name, picture, f"--server={where}", f"--model={model}"],
                cwd=tmp_path, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            # One line, and none of TensorFlow's.
            (line,) = done.stderr.splitlines()
            assert done.returncode == 1 and line.startswith("error: ") and saying in line
        done = subprocess.run(
            [sys.executable, CLIENTS / name, "street.png", "--overlay=./street.png"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 1 and "would be written over" in done.stderr
    if shutil.which("curl"):
        done = subprocess.run(
            ["bash", CLIENTS / "client.sh", "street.png", "mine.png", rest],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        (line,) = done.stderr.splitlines()
        assert done.returncode == 1 and "answers:" in line and "neither PNG nor JPEG" in line
        done = subprocess.run(
            ["bash", CLIENTS / "client.sh", "street.png", "./street.png", rest],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 1 and "is the picture" in done.stderr
    assert (tmp_path / "street.png").read_bytes() == b"no picture"


def test_rows_and_columns_and_all_signatures_agree(server):
    image = colours(33, 49, seed=1)
    labels = ask_grpc(server, "serving_default", "images", image[np.newaxis])["labels"]
    assert labels.dtype == np.uint8 and labels.shape == (1, 33, 49)
    found = ask_grpc(server, "serve_bytes", "image_bytes", [encoded(image)])["labels"]
    np.testing.assert_array_equal(found, labels)
    (png,) = ask_grpc(server, "serve_png", "image_bytes", [encoded(image)])["label_png_bytes"]
    np.testing.assert_array_equal(Image.open(io.BytesIO(png)), labels[0])
    for body in (
        {"instances": image[np.newaxis].tolist()},
        {"inputs": {"images": image[np.newaxis].tolist()}},
        {"signature_name": "serve_bytes", "instances": [b64(encoded(image))]},
        {"signature_name": "serve_bytes", "inputs": {"image_bytes": [b64(encoded(image))]}},
    ):
        status, answer = ask_rest(server, body)
        assert status == 200, answer
        (only,) = answer.values()
        np.testing.assert_array_equal(only, labels)


def test_images_of_several_sizes(server):
    files = [encoded(colours(20, 30)), encoded(colours(33, 17, seed=1))]
    found = ask_grpc(server, "serve_png", "image_bytes", files)["label_png_bytes"]
    assert [Image.open(io.BytesIO(one)).size for one in found] == [(30, 20), (17, 33)]
    with pytest.raises(grpc.RpcError) as error:
        ask_grpc(server, "serve_bytes", "image_bytes", files)
    assert "of one size" in error.value.details()


def claims_to_be_huge():
    """The head of a PNG of 60000 x 60000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


ERRORS = [
    ("serving_default", "images", np.zeros((1, 8, 8, 3), np.float32), "images"),
    ("serving_default", "images", np.zeros((8, 8, 3), np.uint8), "images"),
    ("serving_default", "images", np.zeros((1, 400, 400, 3), np.uint8), "100000"),
    ("serving_default", "images", np.zeros((0, 8, 8, 3), np.uint8), "the batch is empty"),
    ("serve_bytes", "image_bytes", np.array([], object), "the batch is empty"),
    ("serve_png", "image_bytes", np.array([], object), "the batch is empty"),
    ("serve_bytes", "image_bytes", [b"no picture"], "neither PNG nor JPEG"),
    ("serve_png", "image_bytes", [encoded(colours(9, 9))[:60]], ""),
    ("serve_png", "image_bytes", [claims_to_be_huge()], "100000"),
    ("serve_bytes", "image_bytes", [claims_to_be_huge()], "100000"),
    ("serve_nothing", "image_bytes", [b""], "serve_nothing"),
    ("serve_png", "pictures", [b""], "image_bytes"),
]


@pytest.mark.parametrize(("signature", "name", "value", "saying"), ERRORS)
def test_what_cannot_be_answered_is_an_error_and_the_server_lives(
    server, signature, name, value, saying
):
    with pytest.raises(grpc.RpcError) as error:
        ask_grpc(server, signature, name, value)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert saying in error.value.details()
    if signature != "serving_default":
        body = {"signature_name": signature, "inputs": {name: [b64(one) for one in value]}}
        status, answer = ask_rest(server, body)
        assert status == 400 and saying in answer["error"]
    assert server["process"].poll() is None
    good = ask_grpc(server, "serve_png", "image_bytes", [encoded(colours(1, 1))])
    assert Image.open(io.BytesIO(good["overlay_png_bytes"][0])).size == (1, 1)


def test_the_files_of_the_server_are_what_it_reads():
    models = text_format.Parse(
        (CLIENTS / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (one,) = models.model_config_list.config
    assert (one.name, one.base_path, one.model_platform) == (
        *("street", "/models/street", "tensorflow"),
    )
    # Their formats are in no package; these are the names of Serving's documentation.
    fields = {}
    for name in ("monitoring", "batching"):
        lines = (CLIENTS / f"{name}.config").read_text().splitlines()
        fields[name] = {line.split()[0].rstrip(":") for line in lines if line[0] not in "# }"}
    assert fields["monitoring"] == {"prometheus_config"}
    assert fields["batching"] == {
        *("max_batch_size", "batch_timeout_micros", "num_batch_threads", "max_enqueued_batches"),
        "pad_variable_length_inputs",
    }
    compose = (CLIENTS / "compose.yaml").read_text()
    for name in ("models.config", "monitoring.config", "batching.config"):
        assert f"/serving/{name}" in compose
