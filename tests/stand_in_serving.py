"""A stand-in for TensorFlow Serving, whose own server cannot be had from package indices.

    python -m tests.stand_in_serving EXPORT_DIR

It serves the newest SavedModel of that folder under the name "street": replays its warm-up file,
then answers Serving's gRPC Predict and its REST predict, in rows and columns. The first line that
it prints is JSON: the ports, and the signatures that were warmed up. It knows no batching, no
versions, no other calls.
"""

import base64
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

NAME = "street"


class StandInServing(prediction_service_pb2_grpc.PredictionServiceServicer):
    """The SavedModel, and what both interfaces ask of it."""

    def __init__(self, directory):
        self.model = tf.saved_model.load(str(directory))
        self.warmed = []
        path = directory / "assets.extra" / "tf_serving_warmup_requests"
        for record in tf.data.TFRecordDataset(str(path)):
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            self.answer(log.predict_log.request)
            self.warmed.append(log.predict_log.request.model_spec.signature_name)

    def answer(self, request):
        tensors = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        return self.run(request.model_spec.signature_name or "serving_default", tensors)

    def run(self, signature, tensors):
        """Raises ValueError as Serving refuses what does not suit the signature."""
        if signature not in self.model.signatures:
            raise ValueError(f"Serving signature name: {signature} not found")
        function = self.model.signatures[signature]
        specs = function.structured_input_signature[1]
        if tensors.keys() != specs.keys():
            raise ValueError(f"inputs are {sorted(tensors)}, expected {sorted(specs)}")
        given = {}
        for name, value in tensors.items():
            value = tf.constant(value)
            if value.dtype != specs[name].dtype:
                expected = specs[name].dtype.name
                raise ValueError(f"{name} is {value.dtype.name}, expected {expected}")
            if not specs[name].shape.is_compatible_with(value.shape):
                raise ValueError(f"{name} has shape {value.shape}, expected {specs[name].shape}")
            given[name] = value
        return function(**given)

    def Predict(self, request, context):
        if request.model_spec.name != NAME:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found: {request.model_spec}")
        try:
            outputs = self.answer(request)
        except (ValueError, tf.errors.OpError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        answer = predict_pb2.PredictResponse(model_spec=request.model_spec)
        for name, value in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return answer

    def read(self, body):
        """REST's request: rows ("instances") or columns ("inputs")."""
        signature = body.get("signature_name", "serving_default")
        if signature not in self.model.signatures:
            raise ValueError(f"Serving signature name: {signature} not found")
        specs = self.model.signatures[signature].structured_input_signature[1]
        if "inputs" in body:
            columns = body["inputs"]
            if not isinstance(columns, dict) or "b64" in columns:
                columns = dict.fromkeys(specs, columns)
            if columns.keys() != specs.keys():
                raise ValueError(f"inputs are {sorted(columns)}, expected {sorted(specs)}")
        else:
            rows = [
                row if isinstance(row, dict) and "b64" not in row else {next(iter(specs)): row}
                for row in body["instances"]
            ]
            columns = {name: [row[name] for row in rows] for name in specs}
        tensors = {}
        for name, values in columns.items():
            dtype = specs[name].dtype
            values = decode(values)
            if dtype == tf.string:
                tensors[name] = np.array(values, object)
            else:
                tensors[name] = tf.constant(values, dtype).numpy()
        return signature, tensors


def decode(values):
    if isinstance(values, dict):
        return base64.b64decode(values["b64"], validate=True)
    return [decode(value) for value in values] if isinstance(values, list) else values


def encode(name, value):
    values = value.numpy().tolist()
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(one).decode()} for one in values]
    return values


def make_handler(served):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def send(self, code, answer):
            content = json.dumps(answer, indent=1).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            if self.path != f"/v1/models/{NAME}":
                return self.send(404, {"error": "not found"})
            self.send(200, {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]})

        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != f"/v1/models/{NAME}:predict":
                return self.send(404, {"error": "Servable not found"})
            try:
                body = json.loads(content)
                outputs = served.run(*served.read(body))
            except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
                return self.send(400, {"error": str(error)})
            columns = {name: encode(name, value) for name, value in outputs.items()}
            only = next(iter(columns.values())) if len(columns) == 1 else None
            if "inputs" in body:
                return self.send(200, {"outputs": columns if only is None else only})
            rows = [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
            self.send(200, {"predictions": rows if only is None else only})

    return Handler


def main():
    root = Path(sys.argv[1])
    newest = max(
        (path for path in root.iterdir() if path.name.isdecimal()), key=lambda p: int(p.name)
    )
    served = StandInServing(newest)
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(served, server)
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    web = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(served))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    ports = {"grpc": grpc_port, "rest": web.server_port, "warmed": served.warmed}
    print(json.dumps(ports), flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
