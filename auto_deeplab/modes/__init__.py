"""The modes of train.py, a function each, callable from Python too."""

from official.quiet import set_environment

set_environment()  # before TensorFlow or Keras is imported: as commands do
