import service  # noqa: F401  # before ONNX Runtime, which it keeps from telling anybody that it runs
