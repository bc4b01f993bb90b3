"""Training. The way of the data:

fetch         public data sets -> folders                         camera motion is rendered, by camera_clips
datasets      folders -> samples                                  by the service's own decoder and preprocessing
augment       samples -> samples                                  in training only
architectures samples -> logits                                   the networks
recipes       which network, on what, how
train, runs   -> a checkpoint each epoch                          the loop is in trainer
crossvalidate the same, each group of files held out once
inspect       a network or a card -> its layers
evaluate      a checkpoint or an ONNX file -> metrics
report        a checkpoint or an ONNX file -> a folder of PNG and JSON   drawn by figures
calibrate     a checkpoint -> the temperature of its scores
export        a checkpoint -> model.onnx and card.json            by graph, convert and half; then published
pretrained    weights from elsewhere -> the same                  by weights; published says what torchvision has
"""

import service  # noqa: F401  # before ONNX Runtime, which it keeps from telling anybody that it runs
