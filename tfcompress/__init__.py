"""Compress Keras 3 models into small, verified, measured `.tflite` files."""
