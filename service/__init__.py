"""Serving. The way of a request:

door          is there room for it?                               wire asks, once its head is there: else 503
access        an id, a count, a line in the log                   every request; traces, if they are asked for
api, inputs   HTTP -> media bytes and parameters                  refused early: too large, too slow, out of range
pipeline      the stages in order, each timed once by a stopwatch
  decode      bytes -> pixels, samples, frames                    limits first; in threads what is slow
  preprocess  media + card -> samples                             what the card states
  batcher     samples -> batches -> outputs                       each model's queue: admission, decoding, isolation
  postprocess outputs -> labels, masks, timelines
"""

import os

# Nobody is told that, or what, is served here. ONNX Runtime reads its variable while it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
