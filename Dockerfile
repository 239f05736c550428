# Two images, from the repository's root:
#
#     docker build --target train -t auto-deeplab .
#     docker run --rm -v "$PWD:/work" auto-deeplab --mode=search --data_dir=data --model_dir=runs/search
#
#     docker build --target serve --build-arg EXPORT=runs/train/export -t street .
#     docker run --rm -p 8500:8500 -p 8501:8501 street
#
# For NVIDIA GPUs: --build-arg EXTRA=[cuda] for the first, --build-arg SERVING=tensorflow/serving:latest-gpu
# for the second, and --gpus=all to run either.

ARG SERVING=tensorflow/serving:latest

FROM python:3.12-slim AS train
ARG EXTRA=
WORKDIR /source
# What is needed, first: it is installed again only when these two change.
COPY requirements.txt pyproject.toml README.md ./
RUN pip install --no-cache-dir -r requirements.txt
COPY official official
COPY auto_deeplab auto_deeplab
COPY tfrecords_tools tfrecords_tools
RUN pip install --no-cache-dir ".${EXTRA}"
WORKDIR /work
# docker stop sends SIGTERM to the run itself, which then saves and ends.
ENTRYPOINT ["auto-deeplab"]

FROM ${SERVING} AS serve
ARG EXPORT
ENV MODEL_NAME=street
COPY ${EXPORT} /models/street
