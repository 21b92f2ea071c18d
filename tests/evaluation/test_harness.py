"""Tasks of lm-evaluation-harness, made here, against ``transformers`` and against the library's own adapter for it."""

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="pip install 'seqlab[evaluate]'")

from seqlab import pretrained
from seqlab.commands import evaluate
from seqlab.errors import UserError
from seqlab.evaluation.harness import Adapter, Settings, find_tasks, run_tasks
from seqlab.evaluation.texts import OfTokenizer

pytestmark = pytest.mark.filterwarnings("default")  # those of the library's dependencies

ROWS = [
    {"before": "the cat sat on the", "last": " mat", "others": [" dog", " cat ran on a mat", " mat"], "right": 2},
    {"before": "the dog", "last": " sat", "others": [" sat", " ran", " ."], "right": 0},
    {"before": "", "last": "the cat ran", "others": ["a", "the", "cat"], "right": 1},
    {"before": "and the cat ran " * 12, "last": ".", "others": [".", "the", ","], "right": 0},
]
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{before}}}}"
metadata: {{version: 2.5}}
"""
TASKS = {
    "last_word": """
output_type: loglikelihood
doc_to_target: "{{last}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "choice": """
output_type: multiple_choice
doc_to_choice: "{{others}}"
doc_to_target: "{{right}}"
fewshot_split: test
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "whole_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{before}}{{last}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "completion": """
output_type: generate_until
doc_to_target: "{{last}}"
generation_kwargs: {until: ["the"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}
LENGTH = 30


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch) -> str:
    """A folder with the tasks; what the library makes of them stays in the test's own."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.json").write_text("\n".join(map(json.dumps, ROWS)))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}" + COMMON.format(file=folder / "rows.json") + text)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return str(folder)


def ours(folder: Path, **settings: int) -> Adapter:
    model = pretrained.load(folder)
    settings = {"length": LENGTH, "batch_size": 3, "seed": 1234} | settings
    return Adapter(model, OfTokenizer(folder, model.embed.num_embeddings), Settings(**settings))


def found(lm, folder: str, *names: str, fewshot: int | None = None):
    chosen = [one for some in find_tasks(names, folder).values() for one in some]
    return run_tasks(lm, chosen, fewshot=fewshot, limit=None, bootstrap=0)["results"]


@torch.no_grad()
def test_figures_are_those_of_transformers(checkpoint, tasks):
    """The last word's log-likelihood from one pass of ``transformers`` for each document."""
    other, folder = checkpoint("Mamba")
    texts = OfTokenizer(folder, 270)
    likelihoods, greedy = [], []
    for row in ROWS:
        context, last = ([texts.start] if not row["before"] else texts.encode(row["before"].rstrip()).tolist()), None
        spaces = row["before"][len(row["before"].rstrip()) :]
        last = texts.encode(row["before"] + row["last"]).tolist()[len(context) if row["before"] else 0 :]
        assert texts.decode(last) == spaces + row["last"]
        tokens = torch.tensor((context + last)[-LENGTH - 1 :])
        logs = other(tokens[None, :-1], use_cache=False).logits[0].log_softmax(dim=-1)[-len(last) :]
        likelihoods.append(logs.gather(1, tokens[-len(last) :, None]).sum().item())
        greedy.append(torch.equal(logs.argmax(dim=-1), tokens[-len(last) :]))
    results = found(lm := ours(folder), tasks, "last_word")["last_word"]
    assert results["perplexity,none"] == pytest.approx(math.exp(-sum(likelihoods) / len(ROWS)), rel=1e-5)
    assert results["acc,none"] == sum(greedy) / len(ROWS)
    assert lm.cut == 1


@pytest.mark.parametrize("kind", ["GPT2", "Mamba"])
def test_figures_are_those_of_the_librarys_own_adapter(kind, checkpoint, tasks):
    pytest.importorskip("accelerate", reason="pip install 'lm_eval[hf]' brings the adapter")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    other, folder = checkpoint(kind)
    theirs = HFLM(pretrained=other, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=2, max_length=LENGTH)
    manager = TaskManager(include_path=tasks, include_defaults=False)
    expected = simple_evaluate(theirs, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, log_samples=True)
    lm = ours(folder)
    results = found(lm, tasks, *TASKS)
    for name, metrics in expected["results"].items():
        for key, value in metrics.items():
            assert results[name][key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)
    texts = [sample["resps"][0][0] for sample in expected["samples"]["completion"]]
    requests = find_tasks(["completion"], tasks)["completion"][0]
    requests.build_all_requests()
    assert lm.generate_until(requests.instances) == texts
    shots = simple_evaluate(theirs, tasks=["choice"], task_manager=manager, bootstrap_iters=0, num_fewshot=2)
    again = found(lm, tasks, "choice", "whole_text", fewshot=2)
    assert again["choice"]["acc_norm,none"] == shots["results"]["choice"]["acc_norm,none"]
    assert again["whole_text"] == results["whole_text"]


def test_the_command_on_a_run(trained, tasks, capsys):
    run = trained("tiny_shakespeare").folder
    arguments = [
        f"run={run}",
        "tasks=choice,last_*",
        f"tasks.dir={tasks}",
        "bootstrap=100",
        "batch_size=2",
        "length=32",
    ]
    assert evaluate.main(arguments) == 0
    out, _ = capsys.readouterr()
    assert all(name in out for name in ("choice", "last_word", "acc_norm", "perplexity", "2.5"))
    (kept,) = json.loads((run / "evaluation.json").read_text())["evaluations"]
    assert kept["tasks"] == ["choice", "last_word"]
    assert kept["versions"]["lm_eval"] and kept["task_versions"]["choice"] == 2.5
    assert (kept["batch_size"], kept["seed"], kept["length"], kept["shortened_requests"]) == (2, 1234, 32, 5)
    assert kept["results"]["last_word"]["perplexity_stderr,none"] > 0


def test_mistakes(checkpoint, tasks, monkeypatch):
    with pytest.raises(UserError, match=r"tasks=choise: there is no such task\.\nDid you mean 'choice'"):
        find_tasks(["choise"], tasks)
    missing = Path(tasks) / "elsewhere.yaml"
    missing.write_text(f"task: elsewhere{COMMON.format(file='none.json')}{TASKS['choice']}")
    with pytest.raises(UserError, match=r"elsewhere.yaml: the task or its data cannot be had \(FileNotFoundError"):
        find_tasks([str(missing)], None)
    lm = ours(checkpoint("GPT2")[1], length=12)
    with pytest.raises(UserError, match="length=12: the task generates 12 tokens, which leave no room"):
        found(lm, tasks, "completion")
