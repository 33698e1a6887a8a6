"""The model card of an export: what the model is, how to load it, what was measured."""

from __future__ import annotations

from collections.abc import Mapping

from latentpt.thoughts.model import LanguageModel

_THINKING = {
    "vanilla": "It is a plain decoder: no latent thoughts.",
    "latent": "After every token it thinks {n} latent {word}: the last hidden state is fed back as the next input.",
    "latent_mixture": "After every token it thinks {n} latent {word}: the expected embedding of its own prediction is fed back.",
    "pause": "Every token is followed by {n} pause {slots}, in which it computes before it predicts.",
    "loop": "Its blocks run {passes} times over every position.",
    "ponder": "It adds the expected embedding of its own prediction to the input and runs again, {n} {times}.",
    "ponder_hidden": "It adds its last hidden state to the input and runs again, {n} {times}.",
    "sequential_hidden_decoding": "Every token fills {n} further {slots} from embedding tables of their own.",
    "mid_loop": "Layers {span} run {passes} times over every position.",
    "smear": "Before layers {span} it adds to every token the stream of the token before.",
    "p2n": "Layers {span} also read what they made of the token before.",
    "dual_slot": "In layers {span} every token has {n} latent {slots} more, which read what became of the token before.",
    "hybrid": "After every token it thinks {n} latent {word}; the last state also goes into the next token.",
    "lrt": "The last hidden state of the token before goes into every layer.",
    "fbt": "The last hidden state of the token before is fused with every embedding.",
    "t2mlr": "What layers {span} made of the tokens before goes into them again.",
    "alcot": "After every token it thinks up to {n} latent {word}: a router decides after each whether to go on.",
    "ponder3": "After every token it thinks up to {n} latent {word}: a router divides the token among its slots.",
}


_SHOWN = ("loss", "bits_per_byte", "acc", "acc_norm")


def model_card(name: str, model: LanguageModel, loader: str, figures: Mapping[str, str]) -> str:
    """Markdown for README.md; `loader` is the class that transformers loads, `figures` are lines of the table."""
    n, size = model.method.slots - 1, model.config
    words = {"n": n, "passes": n + 1, "word": "thought" if n == 1 else "thoughts"}
    words |= {"slots": "slot" if n == 1 else "slots", "times": "time" if n == 1 else "times"}
    first, stop = model.method.span
    words["span"] = f"{first + 1} to {stop}" if first + 1 < stop else str(stop)
    thinking = _THINKING[model.thoughts.method].format(**words)
    own = loader == "LatentptForCausalLM"
    trust, distrust = (", trust_remote_code=True", ", trust_remote_code=False") if own else ("", "")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    note = (
        "\nThe folder brings its own modeling file, which needs only torch and transformers (4.57 or later); read it "
        "before you trust it.\nThe tokenizer is of a stock class and runs no code of the folder. Logits and generation follow "
        "the exact\nrecurrence; in training mode all positions are thought together.\n"
        if own
        else ""
    )
    table = "\n".join(f"| {key} | {value} |" for key, value in figures.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- latentpt
---
# {name}

A language model of {parameters:,} parameters in the {size.family} family ({size.num_layers} layers, width
{size.hidden_size}), trained with latentpt. {thinking}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{name}"
tokenizer = AutoTokenizer.from_pretrained(folder{distrust})
model = AutoModelForCausalLM.from_pretrained(folder{trust})
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))
```
{note}
| | |
|---|---|
{table}
"""


def run_figures(summary: Mapping[str, float], evaluated: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Lines of the table from a run's summary and from the results of an evaluation, name -> metric -> value."""
    known = {
        "tokens": ("training tokens", "{:,.0f}"),
        "training_flops": ("training FLOPs", "{:.3g}"),
        "validation_loss": ("validation loss, nats a token", "{:.4f}"),
    }
    figures = {
        label: form.format(summary[key])
        for key, (label, form) in known.items()
        if summary.get(key) is not None
    }
    for name, metrics in evaluated.items():
        shown = {key: value for key, value in metrics.items() if key in _SHOWN}
        figures |= {f"{name}: {key}": f"{value:.4f}" for key, value in shown.items()}
    return figures
