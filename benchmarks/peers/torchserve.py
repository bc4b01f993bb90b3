"""TorchServe: an archive whose handler is this file, dynamic batching, a worker per core, no access log."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.stages import Answer, Setup, Stages

STAGES: Stages | None = None
LOG = """<Configuration><Appenders><Console name="console"/></Appenders>
<Loggers><Root level="warn"><AppenderRef ref="console"/></Root></Loggers></Configuration>"""


def handle(data: list[dict[str, Any]] | None, context: object) -> list[Answer]:
    """Called by a worker with a batch of requests, and first, to load the model, with None."""
    global STAGES
    STAGES = STAGES or Stages(Setup.read().model)
    return STAGES.answers([bytes(request.get("body") or request["data"]) for request in data]) if data else []


def configuration(setup: Setup) -> str:
    """Management and metrics get ports of their own, as they must."""
    return f"""
inference_address=http://127.0.0.1:{setup.port}
management_address=http://127.0.0.1:{setup.port + 1}
metrics_address=http://127.0.0.1:{setup.port + 2}
disable_token_authorization=true
disable_system_metrics=true
enable_envvars_config=false
default_workers_per_model={setup.workers}
job_queue_size=1000
load_models=model.mar
model_store=store
models={{"model": {{"1.0": {{"marName": "model.mar", "minWorkers": {setup.workers}, "maxWorkers": {setup.workers}, \
"batchSize": {setup.max_batch}, "maxBatchDelay": 1, "responseTimeout": 60}}}}}}
"""


def main() -> None:
    binaries, store = Path(sys.executable).parent, Path("store")
    store.mkdir(exist_ok=True)
    archive = ["--model-name=model", "--version=1.0", f"--handler={Path(__file__).resolve()}", "--force"]
    subprocess.run([binaries / "torch-model-archiver", *archive, f"--export-path={store}"], check=True)
    Path("config.properties").write_text(configuration(Setup.read()))
    Path("log4j2.xml").write_text(LOG)
    os.environ["PATH"] = f"{binaries}:{os.environ['PATH']}"  # its Java part starts workers by the name of python
    start = ["torchserve", "--start", "--foreground", "--ncs"]
    start += ["--ts-config=config.properties", "--log-config=log4j2.xml"]
    os.execv(binaries / "torchserve", start)


if __name__ == "__main__":
    main()
