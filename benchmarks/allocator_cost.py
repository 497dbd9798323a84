"""What the rank allocation costs beside a training step, on RoBERTa-base's shapes with random
weights.

    python benchmarks/allocator_cost.py [--init 12] [--batch 16] [--length 64] [--steps 5]
        [--device cpu]

Times a training step (forward, backward, clipping, AdamW) and, apart, one `RankAllocator.step`
(every component of the model scored from its factors and smoothed), one pruning, and the DEM
penalty. Compares the scores with the formula as the paper writes it, in double precision, which
forms every component as a (d_out, d_in) matrix. Medians; one warm-up step is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, RobertaConfig

from dynarank import (
    BudgetSchedule,
    DoRALinear,
    RankAllocator,
    dem_penalty,
    importance,
    inject,
    mark_trainable,
)
from dynarank.pretrained.architectures import ARCHITECTURES


def median_seconds(call: Callable[[], object], repeats: int, device: str) -> float:
    """Median wall time of a call, the device drained before and after."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def materialized(layer: DoRALinear) -> Tensor:
    """Eq. 7 as written, in double precision: the r' rank-one matrices, their norms, and the norm of
    their sum."""
    lora_B, lora_A, c = (
        factor.detach().double() for factor in (layer.lora_B, layer.lora_A, layer.lora_c)
    )
    matrices = torch.einsum("or,ri,r->roi", lora_B, lora_A, c)  # (r', d_out, d_in)
    return matrices.flatten(1).norm(dim=1) / (matrices.sum(0).norm() + 1e-8)


def adapted_roberta(init: int, device: str) -> tuple[nn.Module, dict[str, DoRALinear]]:
    """RoBERTa-base from its configuration, adapted in every linear of attention and feed-forward, c
    drawn at random."""
    torch.manual_seed(0)
    sizes = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    model = AutoModelForSequenceClassification.from_config(sizes).to(device).train()
    layers = inject(
        model, ARCHITECTURES["roberta"].targets, r=init, dropout=0.1, exclude=["classifier"]
    )
    mark_trainable(model, ["classifier"])
    for layer in layers.values():
        nn.init.normal_(layer.lora_c)
    return model, layers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("init", 12), ("batch", 16), ("length", 64), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    model, layers = adapted_roberta(options.init, options.device)
    adapters = list(layers.values())
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    tokens = torch.randint(5, 50000, (options.batch, options.length), device=options.device)
    labels = torch.randint(0, 2, (options.batch,), device=options.device)

    def train_step() -> None:
        model(input_ids=tokens, labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    allocator = RankAllocator(
        layers, BudgetSchedule(options.init, options.init * 2 / 3, total=10**9)
    )
    count = round(len(layers) * options.init * 2 / 3)
    step = median_seconds(train_step, options.steps, options.device)
    update = median_seconds(allocator.step, 50, options.device)
    penalty = median_seconds(lambda: dem_penalty(adapters).backward(), 50, options.device)
    formula = median_seconds(lambda: [materialized(layer) for layer in adapters], 2, options.device)
    with torch.no_grad():
        apart = max(
            float((importance(a.lora_A, a.lora_B, a.lora_c) - materialized(a)).abs().max())
            for a in adapters
        )
    prune = median_seconds(lambda: allocator.prune(count), 5, options.device)
    print(
        json.dumps(
            {
                "device": options.device,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "layers": len(layers),
                "init": options.init,
                "batch": options.batch,
                "length": options.length,
                "train_step_ms": round(1e3 * step, 2),
                "allocator_step_ms": round(1e3 * update, 3),
                "allocator_share_percent": round(100 * update / step, 3),
                "prune_ms": round(1e3 * prune, 3),
                "dem_forward_backward_ms": round(1e3 * penalty, 3),
                "materialized_scores_ms": round(1e3 * formula, 1),
                "largest_difference": float(f"{apart:.2g}"),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
