"""Asks a TensorFlow Serving by gRPC for the segmentation of a picture.

    pip install 'auto-deeplab-tf2[serving]'
    python serving/client_grpc.py street.jpg [--server=localhost:8500] [--model=street]
        [--overlay=street_overlay.png] [--labels=street_labels.png]

client_rest.py beside it reads the command line.
"""

import os

import grpc
from client_rest import run

# The messages' types bring TensorFlow along, whose libraries write to file 2 when they are loaded.
_written_to, _nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 2)
try:
    from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
finally:
    os.dup2(_written_to, 2)


def segment(picture: bytes, server: str, model: str, timeout: float = 60.0) -> dict[str, bytes]:
    """Does what that of client_rest.py does; `server` is such as localhost:8500."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serve_png"
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
    request.inputs["image_bytes"].CopyFrom(
        tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[picture])
    )
    # Overlays of large pictures exceed gRPC's own limit of 4 MB.
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    try:
        with grpc.insecure_channel(server, options=options) as channel:
            service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            answer = service.Predict(request, timeout=timeout)
    except grpc.RpcError as error:
        words = " ".join((error.details() or "").split())
        raise RuntimeError(f"{server} answers: {error.code().name}: {words}") from None
    return {name: tensor.string_val[0] for name, tensor in answer.outputs.items()}


if __name__ == "__main__":
    run(segment, "localhost:8500", "Segments a picture by TensorFlow Serving's gRPC.")
