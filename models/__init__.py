"""Training. The way of the data:

fetch         public data sets -> folders
datasets      folders -> samples                                  by the service's own decoder and preprocessing
augment       samples -> samples                                  in training only
architectures samples -> logits                                   the networks
recipes       which network, on what, how
train, runs   -> a checkpoint each epoch                          the loop is in trainer
evaluate      a checkpoint or an ONNX file -> metrics
export, graph a checkpoint -> model.onnx and card.json            compared with PyTorch, then published
"""
