"""What an NVIDIA GPU makes of the networks: this project's way of running them, others, and the chip's own limits.

    python -m benchmarks.gpu                                             what matters most, in nine minutes
    python -m benchmarks.gpu --resume                                    what the nine minutes did not reach
    python -m benchmarks.gpu --resume --serve                            then the service itself, JPEG in, labels out
    python -m benchmarks.gpu --contenders cpu torch-cpu --quick          tries it out, without a GPU, in seconds

Results stand in benchmarks/results/gpu-<device>.json, .md and .png, and are written after every contender.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path

import onnxruntime as ort
import torch

from benchmarks.gpu_contenders import CONTENDERS, Contender, missing
from benchmarks.gpu_networks import SPECS, Network
from benchmarks.gpu_report import Results, Row, read, slug, write
from benchmarks.gpu_service import serve
from benchmarks.networks import WORK
from benchmarks.roofline import ceiling, datasheet, probe, work
from models.options import within

FOLDER = Path(__file__).with_name("results")
BATCHES = tuple(2**power for power in range(8))
_COMPILED_BATCHES = (1, 32, 128)  # each takes PyTorch most of a minute; the others come when all else is measured
_QUICK_NETWORKS = ("audio_cnn", "video_cnn")
_QUICK_BATCHES = (1, 2)
_TOO_SLOW_SECONDS = 3.0  # no larger batch is tried then
_SECONDS, _QUICK_SECONDS = 0.3, 0.02  # that one figure is measured for, at least
_LEAST_RUNS = 5

Job = tuple[str, str, tuple[int, ...]]  # network, contender, batches


def plan(networks: Sequence[str], contenders: Sequence[str], batches: Sequence[int]) -> list[Job]:
    """Every network with every contender, what matters most first: how the service runs the network that all know, and
    the others beside it; then the other networks; what takes long to start, what is slow, and variants at the end."""
    quick_to_start = ("cuda-fp16", "torch-fp16", "cuda", "torch-cpu")
    rounds: list[tuple[Sequence[str], Sequence[str]]] = [
        (networks[:1], ("cuda-fp16", "tensorrt-fp16", "torch-fp16", "cuda", "torch-compile-fp16")),
        (networks[1:], quick_to_start),
        (networks[1:], ("tensorrt-fp16",)),
        (networks[1:], ("torch-compile-fp16",)),
        (networks, ("cpu", "torch-cpu")),
        (networks, tuple(CONTENDERS)),  # whatever is left
    ]
    jobs: dict[tuple[str, str], Job] = {}
    for some, wanted in rounds:
        for contender in (name for name in wanted if name in contenders):
            for network in some:
                few = [size for size in batches if size in _COMPILED_BATCHES or contender != "torch-compile-fp16"]
                jobs.setdefault((network, contender), (network, contender, tuple(few)))
    rest = [
        (network, contender, tuple(size for size in batches if size not in few))
        for network, contender, few in jobs.values()
        if set(batches) - set(few)
    ]
    return [*jobs.values(), *rest]


def spread(run: Callable[[], object], seconds: float) -> tuple[float, float, float]:
    """Milliseconds of one run, after three: the median, and the tenth and ninetieth percentile."""
    for _ in range(3):
        began = time.perf_counter()
        run()
        if time.perf_counter() - began > _TOO_SLOW_SECONDS:
            break
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < _LEAST_RUNS or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        run()
        taken.append((time.perf_counter() - before) * 1000)
        if taken[-1] > _TOO_SLOW_SECONDS * 1000:
            break
    cuts = statistics.quantiles(taken, n=10) if len(taken) > 1 else taken * 9
    return statistics.median(taken), cuts[0], cuts[8]


class Benchmark:
    """Measures jobs one by one until the time is up; ``results`` grow with each."""

    def __init__(self, results: Results, path: Path, *, budget_seconds: float, quick: bool) -> None:
        self.results, self._path, self._quick = results, path, quick
        self._ends = time.monotonic() + budget_seconds
        self._networks: dict[str, Network] = {}

    def measure(self, job: Job) -> None:
        """What is measured already is left as it is."""
        name, contender_name, batches = job
        contender = CONTENDERS[contender_name]
        done = {row.batch for row in self.results.rows if (row.network, row.contender) == (name, contender_name)}
        todo = [size for size in batches if size not in done]
        if not todo or 0 in done:
            return
        if not self._time_for(contender.first_seconds):
            self.results.unreached.append(f"{name} with {contender_name}")
            return
        print(f"{name} with {contender.label}", flush=True)
        if problem := missing(contender):
            self._add(Row(name, contender_name, 0, problem=problem))
            return
        network = self._networks.setdefault(name, Network(name, WORK / "gpu", quick=self._quick))
        try:
            for row in self._rows(network, contender_name, contender, todo):
                self._add(row)
        except Exception as error:  # whatever it is, the next contender may fare better
            problem = " ".join(str(error).split())[:300] or type(error).__name__
            self._add(Row(name, contender_name, 0, problem=problem))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _rows(self, network: Network, name: str, contender: Contender, batches: Sequence[int]) -> Iterator[Row]:
        prepared = contender.prepare(network, max(batches))
        seconds = _QUICK_SECONDS if self._quick else _SECONDS
        limits = self.results.limits(contender.dtype, on_gpu=contender.on_gpu)
        costs = work(network.complexity, network.samples(1)[0].nbytes)
        for size in batches:
            if not self._time_for(2 * seconds):
                self.results.unreached.append(f"{network.name} with {name} from batch {size} on")
                return
            runs = prepared(size)
            computed, whole = spread(runs.compute, seconds), spread(runs.whole, seconds)
            bound = ceiling(costs, size, limits, contender.dtype.itemsize)
            yield Row(
                network=network.name,
                contender=name,
                batch=size,
                milliseconds=computed[0],
                low=computed[1],
                high=computed[2],
                whole_milliseconds=whole[0],
                limit_samples_per_second=bound.samples_per_second,
                bound=bound.bound,
            )
            if whole[0] > _TOO_SLOW_SECONDS * 1000:
                return

    def _add(self, row: Row) -> None:
        said = row.problem or f"batch {row.batch}: {row.milliseconds:.2f} ms, {row.samples_per_second:,.0f}/s"
        print(f"  {said}", flush=True)
        self.results.rows.append(row)
        write(self.results, self._path)

    def _time_for(self, seconds: float) -> bool:
        return time.monotonic() + seconds < self._ends


def describe(*, quick: bool) -> Results:
    """The machine, and its limits as they are measured now."""
    on_gpu = torch.cuda.is_available()
    results = Results(
        device=torch.cuda.get_device_name() if on_gpu else "no GPU",
        measured=date.today().isoformat(),
        versions={"torch": torch.__version__, "onnxruntime": ort.__version__, "cuda": str(torch.version.cuda)},
    )
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    results.set_limits("cpu", torch.float32, probe(cpu, torch.float32, quick=quick))
    for dtype in (torch.float16, torch.float32) if on_gpu else ():
        results.set_limits("gpu", dtype, probe(gpu, dtype))
        if (promised := datasheet(results.device, dtype)) is not None:
            results.set_limits("datasheet", dtype, promised)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare ways to run the networks on a GPU.")
    parser.add_argument("--contenders", "--providers", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--networks", nargs="+", choices=SPECS)
    parser.add_argument("--batches", nargs="+", type=within(1, 4096))
    parser.add_argument("--budget", type=within(1, 86_400), default=540, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="small networks and few runs: tells only that it works")
    parser.add_argument("--resume", action="store_true", help="keep what was measured before, and go on")
    parser.add_argument("--serve", action="store_true", help="measure the service with ResNet-50 as well, by wrk")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the results")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    if not torch.cuda.is_available() and any(CONTENDERS[name].on_gpu for name in arguments.contenders):
        raise SystemExit(
            "there is no NVIDIA GPU that PyTorch can use here; what needs none: "
            "python -m benchmarks.gpu --contenders cpu torch-cpu --quick"
        )
    if arguments.quick:
        torch.set_num_threads(1)  # on a busy machine several wait for one another longer than they work
    results = describe(quick=arguments.quick)
    path = arguments.output / f"gpu-{slug(results.device)}"
    if arguments.resume and (before := read(path)) is not None:
        results.rows.extend(row for row in before.rows if not row.problem)
        results.service = before.service
    networks = arguments.networks or (_QUICK_NETWORKS if arguments.quick else tuple(SPECS))
    batches = sorted(set(arguments.batches or (_QUICK_BATCHES if arguments.quick else BATCHES)))
    benchmark = Benchmark(results, path, budget_seconds=arguments.budget, quick=arguments.quick)
    if arguments.serve:
        left = max(30.0, arguments.budget - (time.monotonic() - began))
        results.service = serve(Network(networks[0], WORK / "gpu", quick=arguments.quick), budget_seconds=left)
        write(results, path)
    for job in plan(networks, arguments.contenders, batches):
        benchmark.measure(job)
    write(results, path)
    print(f"wrote {path}.json, .md and .png")
    if results.unreached:
        print(f"time was up before {len(results.unreached)} more; go on with --resume")


if __name__ == "__main__":
    main()
