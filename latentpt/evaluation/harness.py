"""Tasks of lm-eval-harness with our models: an adapter, and task files for local data."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from latentpt.config import ConfigError, nearest
from latentpt.evaluation.answers import Answers
from latentpt.evaluation.results import Figures
from latentpt.evaluation.scoring import Forward, batches_by_length, score
from latentpt.generation.sampling import Sampling
from latentpt.generation.text import Options, Writer
from latentpt.intervals import ratio_of
from latentpt.seeding import stream

TASKS = Path(__file__).with_name("tasks")
Pair = tuple[list[int], list[int]]
# Metrics of which less is better, and how the harness sums them up.
_LOSSES = {
    "perplexity": "perplexity",
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
}


def local_tasks() -> list[str]:
    """Names of the tasks that have a task file here."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def load_local_task(name: str, data: Path, fewshot: int) -> dict[str, Any]:
    """lm-eval's configuration of a local task; raises ConfigError if there is no such task or its data is missing."""
    if name not in local_tasks():
        near = nearest(name, local_tasks())
        raise ConfigError(
            f"task {name} has no task file here; the nearest is {near}, --online asks the hub for others"
        )
    config: dict[str, Any] = yaml.safe_load((TASKS / f"{name}.yaml").read_text(encoding="utf-8"))
    file = data / config.pop("data_files")
    if not file.is_file():
        raise ConfigError(
            f"task {name} needs {file}, which is missing; name its folder with --task-data, or use --online"
        )
    metrics = [
        {"metric": m, "aggregation": _LOSSES.get(m, "mean"), "higher_is_better": m not in _LOSSES}
        for m in config.pop("metrics")
    ]
    config |= {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": fewshot,
        "metric_list": metrics,
        "metadata": {"version": 1.0},
    }
    if file.suffix == ".txt":
        config["dataset_path"] = "text"
        config["dataset_kwargs"]["sample_by"] = "document"
        config["process_docs"] = _into_pages
    return config


def _into_pages(dataset: Any) -> Any:
    """A text file of articles, each under a line ` = Title = `, as one record per article."""
    pages: list[str] = []
    for line in "\n".join(dataset["text"]).split("\n"):
        title = line.startswith(" = ") and not line.startswith(" = =")
        if title or not pages:
            pages.append("")
        pages[-1] += line + "\n"
    import datasets

    return datasets.Dataset.from_list([{"text": page} for page in pages if page.strip()])


def make_adapter(
    writer: Writer,
    batch_size: int,
    forward: Forward,
    answers: Answers,
    report: Callable[[int], object] | None = None,
) -> Any:
    """An lm-eval model that asks ours; `report(n)` hears of n answered requests."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    model, tokenizer = writer.model, writer.tokenizer
    limit = model.config.max_positions

    class Adapter(TemplateLM):
        """loglikelihood, rolling and generate_until in batches, each answer kept at once."""

        @property
        def eot_token_id(self) -> int:
            """The end-of-document token, which also begins a document."""
            return tokenizer.eod_id or 0

        @property
        def tokenizer_name(self) -> str:
            """Names the cache of requests."""
            return tokenizer.sha256

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            """Ids of a text, nothing added."""
            return tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            found = self.scores([(context, continuation) for _, context, continuation in requests])
            return [(logprob, bool(greedy)) for logprob, greedy in found]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            """Log-probability of whole texts, cut into windows that do not overlap in what they predict."""
            totals = []
            for request in requests:
                windows = get_rolling_token_windows(
                    token_list=tokenizer.encode(request.args[0]), prefix_token=self.eot_token_id,
                    max_seq_len=limit, context_len=1,
                )  # fmt: skip
                found = self.scores([make_disjoint_window(window) for window in windows])
                totals.append(sum(logprob for logprob, _ in found))
            return totals

        def scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
            """Scores of pairs of ids, from the kept answers where they have them."""
            keys = [answers.key("score", context, continuation) for context, continuation in pairs]
            new = list(
                {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in answers}.items()
            )
            lengths = [len(context) + len(continuation) for _, (context, continuation) in new]
            for batch in batches_by_length(lengths, batch_size):
                found = score(model, [new[index][1] for index in batch], forward)
                answers.add((new[index][0], list(one)) for index, one in zip(batch, found, strict=True))
                if report is not None:
                    report(len(batch))
            return [answers[key] for key in keys]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            """Continuations up to one of the stop strings of each request."""
            keys = [answers.key("text", *request.args) for request in requests]
            groups: dict[str, list[int]] = {}
            for index, request in enumerate(requests):
                if keys[index] not in answers:
                    groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
            for settings, members in groups.items():
                options = _options(json.loads(settings))
                # The harness's default of 256 is more than a model of few positions has.
                if options.max_new_tokens >= limit:
                    options = options._replace(max_new_tokens=limit // 2)
                prompts = [
                    writer.encode(requests[index].args[0])[-(limit - options.max_new_tokens) :]
                    for index in members
                ]
                for batch in batches_by_length(list(map(len, prompts)), batch_size):
                    streams = [stream(0, keys[members[index]]) for index in batch]
                    texts = writer.continue_ids([prompts[index] for index in batch], options, streams=streams)
                    answers.add(
                        (keys[members[index]], text) for index, text in zip(batch, texts, strict=True)
                    )
                    if report is not None:
                        report(len(batch))
            return [answers[key] for key in keys]

    return Adapter()


def _options(settings: dict[str, Any]) -> Options:
    """lm-eval's generation settings in our words."""
    until = settings.get("until") or []
    sampling = Sampling()
    if settings.get("do_sample", False):
        sampling = Sampling(
            settings.get("temperature", 1.0), settings.get("top_k"), settings.get("top_p", 1.0)
        )
    stop = (until,) if isinstance(until, str) else tuple(until)
    return Options(settings.get("max_gen_toks", 256), sampling, stop)


def run_tasks(
    adapter: Any, names: Sequence[str], data: Path, fewshot: int, limit: int | None, online: bool
) -> dict[str, Figures]:
    """Metrics of each task, by name, with standard errors over its documents. Raises ConfigError for unknown tasks and missing data."""
    if not online:
        configs = [load_local_task(name, data, fewshot) for name in names]
        for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ.setdefault(variable, "1")
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    tasks: list[Any] = list(names) if online else [ConfigurableTask(config=config) for config in configs]
    found = simple_evaluate(
        adapter,
        tasks=tasks,
        num_fewshot=fewshot if online else None,
        limit=limit,
        bootstrap_iters=0,
        # the harness's own thirteen thousand task files take longer to read than a small evaluation
        task_manager=TaskManager(include_defaults=online),
    )
    return {
        name: _figures(values, found["samples"].get(name, []), found["n-samples"].get(name, {}))
        for name, values in found["results"].items()
    }


def _figures(values: dict[str, Any], samples: Sequence[dict[str, Any]], counts: dict[str, int]) -> Figures:
    """Numbers of one task: `acc,none` becomes acc; its error comes from what each document gave."""
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in values.items():
        metric, comma, way = key.partition(",")
        if not comma or not isinstance(value, int | float):
            continue
        metrics[metric] = float(value)
        each = [sample[metric] for sample in samples if sample.get("filter", way) == way and metric in sample]
        error = standard_error(float(value), each)
        if error is not None:
            errors[metric] = error
    return Figures(metrics, errors, counts.get("effective", len(samples)))


def standard_error(value: float, each: Sequence[Any]) -> float | None:
    """The error of a figure that was made of one number, or one (sum, weight), a document; None where it is not known how.

    The harness makes figures of documents in a few ways: the mean, exp(-mean), and exp(-ratio) or -ratio / log 2 of sums
    and weights. The way is the one that gives the value. An error passes through it by its derivative.
    """
    if len(each) < 2 or not all(isinstance(one, int | float | list | tuple) for one in each):
        return None
    pairs = [one if isinstance(one, list | tuple) else (one, 1.0) for one in each]
    mean = ratio_of([float(pair[0]) for pair in pairs], [float(pair[1]) for pair in pairs])
    assert mean.error is not None  # there are several
    ways = {mean.value: 1.0, -mean.value / math.log(2): 1 / math.log(2)}
    if mean.value <= 0:
        ways[math.exp(min(-mean.value, 700.0))] = math.exp(min(-mean.value, 700.0))
    return next((mean.error * d for made, d in ways.items() if math.isclose(made, value, rel_tol=1e-6)), None)
