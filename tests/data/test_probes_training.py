"""What a probe is for: a model without memory stays at chance where one with memory learns the task."""

import torch

from seqlab.data.probes.induction_heads import InductionHeads
from support import built_model

DATA = InductionHeads(length=12, vocab_size=8, n_train=None, epoch_size=10**6, n_validation=512, n_test=1, seed=0)


def accuracy_after(model: str, steps: int, lr: float) -> float:
    """Validation accuracy of a tiny model after training."""
    size = "size=tiny", "size.d_model=32", "size.n_layers=2"
    network = built_model(f"model={model}", *size, d_input=8, length=DATA.length)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for step in range(steps):
        inputs, targets = DATA.train_batch(step, 32, 1)
        loss = DATA.loss(network(inputs), targets).sum() / DATA.mask(targets).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inputs, targets = next(DATA.evaluation_batches("validation", 512))
    with torch.no_grad():
        right = network(inputs).argmax(dim=-1) == targets
    return right[DATA.mask(targets)].float().mean().item()


def test_memory_is_what_the_probe_measures():
    assert accuracy_after("mlp", steps=200, lr=3e-3) < DATA.chance + 0.08
    assert accuracy_after("mamba", steps=150, lr=7e-3) > 0.95
