"""The competing methods, each against something that was computed in another way."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapter_readers import tiny_llama
from tiny import configure, tiny_bart, tiny_roberta

from dynarank.adapters.compress import compress
from dynarank.adapters.cutting import cut_optimizer, cut_to_kept
from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.config.schema import SCHEMAS, OptimizerConfig
from dynarank.methods import build_method
from dynarank.methods.diff_pruning import add_sparse
from dynarank.methods.eva import Positions, read_positions, text_inputs
from dynarank.methods.gora import mean_gradients
from dynarank.methods.hard_concrete import open_probability, sample_gates, sure_gates
from dynarank.methods.sora import soft_threshold
from dynarank.pretrained.architectures import ARCHITECTURES
from dynarank.pretrained.hub import HubConfig
from dynarank.runs.predictor import load_predictor
from dynarank.runs.run import run
from dynarank.training.carrying import carry_over
from dynarank.training.optimizer import build_optimizer

TARGETS = ARCHITECTURES["roberta"].targets


def roberta() -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(tiny_roberta()).eval()


def skewed_roberta() -> Any:
    """One whose attention output has inputs of one direction: components want to move away."""
    model = roberta()
    value = model.roberta.encoder.layer[0].attention.self.value
    value.weight.data = torch.outer(value.weight.data[:, 0], value.weight.data[0])
    return model


def adapted(name: str, model: Any, settings: dict[str, Any] | None = None, **budget: Any) -> Any:
    config: Any = SCHEMAS[f"method/{name}"]
    method = build_method(
        config(name=name, **(settings or {})), BudgetConfig(**budget), DemConfig()
    )
    method.adapt(model, TARGETS, ["classifier"])
    return method


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(5)
    made = []
    for _ in range(count):
        mask = torch.ones(8, 7, dtype=torch.long)
        mask[:3, 5:] = 0
        ids = torch.randint(3, 30, (8, 7), generator=draw)
        labels = torch.randint(0, 2, (8,), generator=draw)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def train(method: Any, allocator: Any, steps: int, lr: float = 0.01) -> Any:
    """Plain steps, the allocator driven as training drives it."""
    trained = [p for p in method.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    for batch in batches(steps):
        optimizer.zero_grad()
        method.model(**batch).loss.backward()
        optimizer.step()
        allocator.lr = lr
        if allocator.step() and hasattr(allocator, "carried"):
            carry_over(method.model, [optimizer], {}, allocator.carried())
            if allocator.frozen:
                cut_optimizer(optimizer, cut_to_kept(method.model))
    return optimizer


# --- whole runs ---


@pytest.mark.parametrize("name", ["global_svd", "eva", "gora", "sora", "diff_pruning"])
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(
    name: str, hub_root: Path, tmp_path: Path
) -> None:
    settings = [
        f"method={name}",
        "budget=r2",
        "budget.interval=2",
        "task=mrpc",
        "optimizer.lr=0.01",
    ]
    settings += ["budget.init=3", "trainer.epochs=3", "checkpoint.keep=99"]
    whole = run(configure(tmp_path / "whole", hub_root, *settings, "checkpoint.every_steps=1"))
    assert whole.components_kept == (0 if name == "diff_pruning" else 24)
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").glob("step-*.ckpt"))
    assert len(checkpoints) > 3
    # Before the freeze for one half of the methods; the others decide before the first step.
    for path in checkpoints[1:2] if name in ("eva", "sora") else checkpoints[-2:-1]:
        again = run(
            configure(
                tmp_path / path.stem, hub_root, *settings, "checkpoint.every_steps=1",
                f"resume.path={path}",
            )
        )  # fmt: skip
        assert again.metrics == whole.metrics
        assert again.ranks == whole.ranks
        file = "trained" if name == "diff_pruning" else "adapter_model"
        ours = (tmp_path / path.stem / "adapter" / f"{file}.safetensors").read_bytes()
        theirs = (tmp_path / "whole" / "adapter" / f"{file}.safetensors").read_bytes()
        assert ours == theirs
    predictor = load_predictor(tmp_path / "whole", HubConfig(str(hub_root)), device="cpu")
    predictor.task.read(HubConfig(str(hub_root)))
    rows = predictor.task.validation["validation"]
    names = predictor.task.config.labels
    right = []
    for prediction, label in zip(predictor(rows), rows["label"][:], strict=True):
        right.append(names.index(prediction["label"]) == label)
    assert sum(right) / len(right) == pytest.approx(whole.metrics["accuracy"])


# --- global SVD ---


@pytest.mark.parametrize("unit", ["components", "parameters"])
def test_global_svd_cuts_as_compression_after_training_does(unit: str) -> None:
    """Against `compress`, whose decomposition is another one, on weights trained alike."""
    size = {"target": 1.5, "init": 4, "unit": unit, "final": 0.0, "warmup": 0.0}
    uncut = adapted("global_svd", roberta(), **{**size, "target": 4})
    train(uncut, uncut.allocator(6), 6)
    # The uncut run was turned too, which changes no update.
    dense = {name: layer.delta_weight().detach() for name, layer in uncut.layers.items()}
    cut = adapted("global_svd", roberta(), **size)
    allocator = cut.allocator(6)
    train(cut, allocator, 6)
    costs = {name: sum(delta.shape) for name, delta in dense.items()}
    spend = {"target": 1.5} if unit == "components" else {"parameters": allocator.allowance(6)}
    identity = {name: (delta, torch.eye(len(delta))) for name, delta in dense.items()}
    expected = compress(identity, **spend)  # type: ignore[arg-type]
    if unit == "components":
        assert sum(cut.ranks().values()) == 18
        assert cut.ranks() == {name: len(A) for name, (A, _) in expected.factors.items()}
    else:
        kept = sum(rank * costs[name] for name, rank in cut.ranks().items())
        assert kept <= allocator.allowance(6) < kept + max(costs.values())
    for name, layer in cut.layers.items():
        U, S, Vh = torch.linalg.svd(dense[name])
        k = cut.ranks()[name]
        best = U[:, :k] @ torch.diag(S[:k]) @ Vh[:k]
        torch.testing.assert_close(layer.delta_weight(), best, atol=2e-5, rtol=1e-3)


def test_moments_and_average_are_turned_with_the_factors() -> None:
    """Against the old ones, solved densely for the maps between old and new factors."""
    method = adapted("global_svd", roberta(), target=3, init=3, warmup=0.0, final=0.5)
    allocator = method.allocator(8)
    optimizer = train(method, allocator, 3)
    name, layer = next(iter(method.layers.items()))
    key = f"{name}.lora_A"
    old_A, old_B = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
    first = optimizer.state[layer.lora_A]["exp_avg"].clone()
    average = {key: 0.9 * old_A}
    allocator.t = allocator.schedule.freeze_step - 1
    assert allocator.step()
    changed = carry_over(method.model, [optimizer], average, allocator.carried())
    assert len(changed) == 12 * 2 * 3 + 1  # A, B, two moments each, and one average
    torch.testing.assert_close(average[key], 0.9 * layer.lora_A.detach(), rtol=1e-3, atol=1e-5)
    # B' = B N, hence N; and the gradient of A' is N^T times that of A.
    N = torch.linalg.lstsq(old_B.double(), layer.lora_B.detach().double()).solution
    torch.testing.assert_close(
        optimizer.state[layer.lora_A]["exp_avg"].double(),
        N.T @ first.double(),
        rtol=1e-2,
        atol=1e-5,
    )


# --- EVA ---


def test_eva_is_pefts_own_initialization() -> None:
    import peft
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    method = adapted("eva", skewed_roberta(), {"rho": 2.0, "tau": 0.9}, target=2)
    inputs = batches(4)
    method.prepare(inputs)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=16,
        target_modules=list(method.layers),
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=2.0, tau=0.9, use_label_mask=False),
    )
    theirs: Any = peft.get_peft_model(skewed_roberta(), config)
    initialize_lora_eva_weights(theirs, inputs, show_progress_bar=False)
    compared = 0
    for name, layer in method.layers.items():
        other = theirs.base_model.model.get_submodule(name)
        k = int(layer.mask.sum())
        if not hasattr(other, "lora_A"):
            assert k == 0
            continue
        A = other.lora_A["default"].weight
        assert len(A) == k == method.ranks()[name]
        torch.testing.assert_close(layer.lora_A[:k], A)
        assert layer.scaling == pytest.approx(other.scaling["default"])
        assert not layer.lora_B.any()
        compared += k
    assert compared == 24
    assert max(method.ranks().values()) > 2


def test_eva_reads_the_tokens_that_the_loss_counts_as_pefts_own_does() -> None:
    """A prompt's inputs, which the loss leaves out, would turn the directions."""
    import peft
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    targets = ["q_proj", "down_proj"]
    inputs = []
    for batch in batches(4):
        prompts = batch["attention_mask"].clone()
        prompts[:, 3:] = 0
        labels = batch["input_ids"].masked_fill(prompts.bool(), -100)
        labels = labels.masked_fill(batch["attention_mask"] == 0, -100)
        inputs.append({**batch, "labels": labels})
    config: Any = SCHEMAS["method/eva"]
    settings = config(name="eva", rho=1.0, tau=0.9)
    method: Any = build_method(settings, BudgetConfig(target=2), DemConfig())
    method.adapt(tiny_llama(), targets, [])
    method.prepare(inputs)
    theirs: Any = peft.get_peft_model(
        tiny_llama(),
        peft.LoraConfig(
            r=2,
            target_modules=list(method.layers),
            init_lora_weights="eva",
            eva_config=peft.EvaConfig(rho=1.0, tau=0.9),
        ),
    )
    initialize_lora_eva_weights(theirs, inputs, show_progress_bar=False)
    for name, layer in method.layers.items():
        other = theirs.base_model.model.get_submodule(name)
        torch.testing.assert_close(layer.lora_A, other.lora_A["default"].weight, msg=name)


def test_eva_reads_of_packed_rows_what_it_reads_of_single_ones() -> None:
    """Packed rows have a mask of pairs of positions, which says nothing of single ones."""
    from dynarank.tasks.packed import packed_batch

    rows = [([3, 5, 7, 9], [-100, 5, 7, 9]), ([4, 6, 8], [-100, 6, 8]), ([2, 10], [-100, 10])]
    features, single = [], []
    for tokens, labels in rows:
        single.append({"input_ids": torch.tensor([tokens]), "labels": torch.tensor([labels])})
    for first, second in ((0, 1), (2, 1)):
        tokens = rows[first][0] + rows[second][0]
        labels = rows[first][1] + rows[second][1]
        lengths = [len(rows[first][0]), len(rows[second][0])]
        features.append({"input_ids": tokens, "labels": labels, "seq_lengths": lengths})
    packed = packed_batch(features, 0, -100)
    model = tiny_llama()
    read: list[torch.Tensor] = []

    def collect(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        read.clear()
        positions = read_positions(inputs, config, encodes=False)
        layer = model.get_submodule("model.layers.1.mlp.down_proj")
        hook = layer.register_forward_pre_hook(
            lambda _, x: read.append(text_inputs(x, positions, "model.layers.1.mlp.down_proj"))
        )
        model(**{name: value for name, value in inputs.items() if name != "labels"})
        hook.remove()
        return read[0]

    config = SimpleNamespace(eva_config=SimpleNamespace(label_mask_value=-100))
    alone = [collect(row) for row in (single[0], single[1], single[2], single[1])]
    torch.testing.assert_close(collect(packed), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_eva_reads_each_half_of_an_encoder_decoder_where_it_has_text() -> None:
    """Against the inputs of the same length, picked and decomposed by hand."""
    from transformers import AutoModelForSeq2SeqLM

    def bart() -> Any:
        torch.manual_seed(0)
        return AutoModelForSeq2SeqLM.from_config(tiny_bart()).eval()

    batch = batches(1)[0]
    answers = torch.ones(8, 7, dtype=torch.bool)
    answers[2:, 4:] = False
    labels = batch["input_ids"].flip(0).masked_fill(~answers, -100)
    inputs = {**batch, "labels": labels}
    reads = {
        "model.encoder.layers.0.self_attn.q_proj": batch["attention_mask"].bool(),
        "model.decoder.layers.0.self_attn.q_proj": answers,
        "model.decoder.layers.0.encoder_attn.k_proj": batch["attention_mask"].bool(),
    }
    config: Any = SCHEMAS["method/eva"]
    method: Any = build_method(config(name="eva", rho=1.0), BudgetConfig(target=2), DemConfig())
    method.adapt(bart(), [re.escape(name) for name in reads], [])
    method.prepare([inputs])
    plain, seen = bart(), {}
    for name in reads:
        layer = plain.get_submodule(name)
        layer.register_forward_hook(lambda _, given, __, name=name: seen.update({name: given[0]}))
    plain(**inputs)
    for name, positions in reads.items():
        X = seen[name][positions].detach()
        S_and_directions = torch.linalg.svd(X - X.mean(dim=0), full_matrices=False)
        A = method.layers[name].lora_A.detach()
        cosines = (A @ S_and_directions.Vh[:2].T).abs()
        torch.testing.assert_close(cosines, torch.eye(2), atol=1e-2, rtol=0, msg=name)


def test_a_classifiers_decoder_reads_its_text() -> None:
    mask = batches(1)[0]["attention_mask"]
    x = torch.randn(8, 7, 3)
    positions = Positions(text=mask.bool(), answer=torch.ones(8, dtype=torch.bool))
    assert torch.equal(text_inputs((x,), positions, "model.decoder.layers.0.fc1"), x[mask.bool()])


def test_eva_needs_whole_components() -> None:
    with pytest.raises(ValueError, match="whole number"):
        adapted("eva", roberta(), target=0.5)


# --- GoRA ---


def dense_mean_gradients(names: list[str], inputs: list[Any]) -> dict[str, torch.Tensor]:
    model = roberta()
    sums: dict[str, torch.Tensor] = {}
    for batch in inputs:
        model.zero_grad()
        model(**batch).loss.backward()
        for name in names:
            gradient = model.get_submodule(name).weight.grad
            sums[name] = sums.get(name, 0) + gradient / len(inputs)
    return sums


@pytest.mark.parametrize("unit", ["components", "parameters"])
@pytest.mark.parametrize("target", [0.5, 2])
def test_gora_meets_the_budget_in_the_order_of_the_papers_ranks(target: float, unit: str) -> None:
    inputs = batches(3)
    method = adapted("gora", roberta(), {"max_ratio": 8.0}, target=target, unit=unit)
    method.prepare(inputs)
    gradients = dense_mean_gradients(list(method.layers), inputs)
    model = roberta()
    importance, f = {}, {}
    for name, gradient in gradients.items():
        importance[name] = float(
            (model.get_submodule(name).weight.detach() * gradient).abs().mean()
        )
        f[name] = sum(gradient.shape)
    roots = sum(math.sqrt(value) for value in f.values())
    total = sum(importance.values())
    ranks = method.ranks()
    spent = sum(ranks[name] * f[name] for name in f)
    budget = target * sum(f.values())
    if unit == "components":
        assert sum(ranks.values()) == target * 12
    else:
        assert budget - max(f.values()) < spent <= budget
    rho = {n: importance[n] / total * roots * target / math.sqrt(f[n]) for n in f}
    if unit == "components":
        # Rounding with one threshold: nothing left out is worth more than anything kept.
        kept = min(rho[n] - (ranks[n] - 1) for n in f if ranks[n])
        left = max(rho[n] - ranks[n] for n in f)
        assert kept >= left - 1e-6


@pytest.mark.parametrize("unit", ["components", "parameters"])
def test_gora_leaves_every_matrix_the_papers_smallest_rank(unit: str) -> None:
    """What is above the floors goes to the matrices that would have had it without them."""
    ranks = {}
    for floor in (0, 1):
        method = adapted(
            "gora", roberta(), {"max_ratio": 8.0}, target=1.5, unit=unit, min_rank=floor
        )
        method.prepare(batches(3))
        ranks[floor] = method.ranks()
    assert min(ranks[0].values()) == 0 < 1 == min(ranks[1].values())
    costs = {name: layer.in_features + layer.out_features for name, layer in method.layers.items()}
    if unit == "components":
        assert sum(ranks[1].values()) == 18
    else:
        spent = sum(ranks[1][name] * cost for name, cost in costs.items())
        assert 1.5 * sum(costs.values()) - max(costs.values()) < spent <= 1.5 * sum(costs.values())
    for name, rank in ranks[1].items():
        assert rank <= max(1, ranks[0][name]), name


def test_a_start_along_the_gradient_is_its_truncated_decomposition() -> None:
    inputs = batches(3)
    settings = {"directions": "gradient", "gamma": 0.5}
    method = adapted("gora", roberta(), settings, target=2)
    method.prepare(inputs)
    for name, gradient in dense_mean_gradients(list(method.layers), inputs).items():
        k = method.ranks()[name]
        U, S, Vh = torch.linalg.svd(gradient)
        best = U[:, :k] @ torch.diag(S[:k]) @ Vh[:k]
        start = method.layers[name].delta_weight()
        torch.testing.assert_close(start, -0.5 * best, atol=1e-6, rtol=1e-3)


def test_a_random_start_is_the_gradient_projected_onto_its_rows() -> None:
    inputs = batches(2)
    method = adapted("gora", roberta(), {"gamma": 1.0}, target=2)
    method.prepare(inputs)
    for name, gradient in dense_mean_gradients(list(method.layers), inputs).items():
        layer = method.layers[name]
        A = layer.lora_A[layer.mask]
        Q = torch.linalg.qr(A.T).Q  # an orthonormal basis of the rows
        root = math.sqrt(gradient.shape[1] / max(1, len(A)))
        torch.testing.assert_close(
            layer.delta_weight(), -root * gradient @ Q @ Q.T, atol=1e-6, rtol=1e-3
        )


@pytest.mark.parametrize("name", ["gora", "eva"])
@pytest.mark.parametrize("target", [1, 4])
def test_placed_components_have_loras_scale(name: str, target: int) -> None:
    method = adapted(name, roberta(), {"alpha": 6.0}, target=target)
    assert {layer.scaling for layer in method.layers.values()} == {6.0 / target}


@pytest.mark.parametrize(("target", "alpha"), [(1, 16.0), (4, 3.0)])
def test_a_random_start_is_about_as_long_as_gamma_times_the_gradient(
    target: int, alpha: float
) -> None:
    inputs = batches(2)
    method = adapted("gora", roberta(), {"gamma": 0.1, "alpha": alpha}, target=target)
    method.prepare(inputs)
    found, wanted = 0.0, 0.0
    for name, gradient in dense_mean_gradients(list(method.layers), inputs).items():
        if method.ranks()[name]:
            found += float(method.layers[name].delta_weight().detach().square().sum())
            wanted += float((0.1 * gradient).square().sum())
    assert 0.5 < math.sqrt(found / wanted) < 2


def test_the_preparation_leaves_the_base_frozen_and_the_mode_as_it_was() -> None:
    model = roberta().train()
    method = adapted("gora", model, target=1)
    method.prepare(batches(1))
    assert model.training
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_A" in n or "lora_B" in n or n.startswith("classifier") for n in trained)
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    with method.bare() as maps:
        assert set(mean_gradients(model, maps, batches(1))) == set(method.layers)


# --- SoRA ---


def test_the_threshold_is_the_proximal_map() -> None:
    """The minimizer of (x - v)^2 / 2 + xi |x| on a fine grid."""
    grid = torch.linspace(-3, 3, 60001)
    for v in (-2.0, -0.3, 0.0, 0.2, 1.7):
        cost = (grid - v).square() / 2 + 0.5 * grid.abs()
        best = grid[cost.argmin()]
        assert float(soft_threshold(torch.tensor(v), 0.5)) == pytest.approx(float(best), abs=3e-4)


def test_gates_shrink_by_rate_times_lambda_and_end_at_the_budget() -> None:
    method = adapted("sora", roberta(), {"sparsity": 30.0}, target=1, init=3, warmup=0.0)
    allocator = method.allocator(10)
    first = next(iter(method.layers.values()))
    first.lora_c.data[:] = torch.tensor([0.9, -0.2, 0.05])
    allocator.t, before = 4, first.lora_c.detach().clone()
    allocator.threshold(0.1)
    torch.testing.assert_close(first.lora_c.detach(), torch.tensor([0.8, -0.1, 0.0]))
    assert not torch.equal(before, first.lora_c)
    allocator.t = 0
    train(method, allocator, 10)
    assert allocator.frozen
    assert sum(method.ranks().values()) == 12


def test_gates_start_at_one_or_as_the_authors_do_at_random() -> None:
    c = {}
    for gates in ("one", "normal"):
        method = adapted("sora", roberta(), {"gates": gates}, target=200, init=300)
        c[gates] = torch.cat([layer.lora_c.detach() for layer in method.layers.values()])
        assert not any(bool(layer.lora_B.any()) for layer in method.layers.values())
    assert bool((c["one"] == 1).all())
    assert float(c["normal"].mean()) == pytest.approx(0, abs=0.06)
    assert float(c["normal"].std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("sparsity", "told"), [(0.1, True), (300.0, False)])
def test_a_threshold_that_closes_no_gate_is_told(
    sparsity: float, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    method = adapted("sora", roberta(), {"sparsity": sparsity}, target=1, init=2, warmup=0.0)
    train(method, method.allocator(8), 8)
    assert sum(method.ranks().values()) == 12
    assert ("had closed no gate" in caplog.text) is told


def test_however_strong_the_threshold_the_scheduled_number_of_gates_is_left() -> None:
    method = adapted("sora", roberta(), target=1, init=3, warmup=0.0, schedule="linear")
    allocator = method.allocator(10)
    draw = torch.Generator().manual_seed(1)
    for layer in method.layers.values():
        layer.lora_c.data = torch.rand(3, generator=draw) + 0.5
    for t in (1, 3, 4):
        allocator.t = t
        allocator.threshold(1e9)
        left = sum(int((layer.lora_c != 0).sum()) for layer in method.layers.values())
        assert left == allocator.schedule.keep(t, 12)


def test_the_freeze_keeps_the_largest_gates_whatever_their_factors() -> None:
    method = adapted("sora", roberta(), {"sparsity": 0.0}, target=1, init=2, warmup=0.0)
    allocator = method.allocator(4)
    for layer in method.layers.values():
        layer.lora_c.data[:] = torch.tensor([0.9, -0.5])
        layer.lora_B.data[:, 0], layer.lora_B.data[:, 1] = 0.01, 1.0  # the other norm is larger
    for _ in range(4):
        allocator.step()
    assert all(layer.mask.tolist() == [True, False] for layer in method.layers.values())


def test_a_fixed_component_that_was_pruned_never_takes_anothers_place() -> None:
    """It has no gradient to return by, and would be kept at c = 0."""
    budget = {"target": 1, "init": 3, "warmup": 0.0, "regrow": True}
    method = adapted("dynarank", roberta(), {"dropout": 0.0}, **budget)
    allocator = method.allocator(4)
    allocator.ema = torch.arange(36.0)
    allocator.prune(24)
    allocator.ema = torch.arange(36.0, 0, -1)  # the first twelve, now gone, would be the best
    allocator.freeze(allocator.prune(12))
    assert sum(int(layer.mask.sum()) for layer in method.layers.values()) == 12
    assert sum(method.ranks().values()) == 12


# --- bounds ---


@pytest.mark.parametrize("name", ["global_svd", "sora", "gora", "eva", "dora"])
def test_no_rank_is_above_the_bound(name: str) -> None:
    """Free to choose, each puts more than one component into some matrix."""
    settings = {"max_ratio": 8.0} if name == "gora" else {}
    settings |= {"rho": 4.0} if name == "eva" else {}
    highest = []
    for bound in (None, 1):
        method = adapted(name, roberta(), settings, target=1, init=3, warmup=0.0, max_rank=bound)
        if method.preparation_batches:
            method.prepare(batches(2))
        if name not in ("gora", "eva"):
            allocator = method.allocator(4)
            allocator.t = 4
            for layer in method.layers.values():
                layer.lora_c.data.fill_(1.0)
            allocator.ema = torch.arange(36, 0, -1).float()  # the first four matrices' are best
            allocator.freeze(allocator.prune(12))
        assert sum(method.ranks().values()) == 12
        highest.append(max(method.ranks().values()))
    assert highest[0] > 1 == highest[1]


@pytest.mark.parametrize(
    ("name", "bound", "remedy"),
    [
        ("eva", {"min_rank": 1}, "EVA has no such limit. Take method=dora, or budget.min_rank=0"),
        ("adalora", {"min_rank": 1}, "AdaLoRA has no such limit"),
        ("adalora", {"max_rank": 4}, "or budget.max_rank=null"),
        ("lora", {"min_rank": 1}, "these ranks go down to 0"),
    ],
)
def test_a_bound_that_a_method_cannot_keep_is_refused(
    name: str, bound: dict[str, int], remedy: str
) -> None:
    settings = {"placement": "last_layers"} if name == "lora" else {}
    with pytest.raises(ValueError, match=remedy):
        adapted(name, roberta(), settings, target=1, init=1, **bound)


# --- Diff Pruning ---


def test_the_expected_number_of_open_gates_is_that_of_many_draws() -> None:
    torch.manual_seed(0)
    for log_alpha in (-3.0, -0.5, 0.0, 2.0):
        draws = sample_gates(torch.full((200_000,), log_alpha))
        assert float(draws.min()) >= 0 <= float(draws.max()) <= 1
        expected = float(open_probability(torch.tensor(log_alpha)))
        assert float((draws > 0).float().mean()) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("log_alpha", [-2.0, 0.5, 3.0])
def test_gates_are_shut_and_open_as_often_as_in_the_paper(log_alpha: float) -> None:
    """s = sigmoid(logit u + a) is stretched from (0, 1) to (-1.5, 1.5), and there is cut.

    So z = 0 where s is below 1/2, z = 1 where it is above 5/6.
    """
    torch.manual_seed(0)
    draws = sample_gates(torch.full((200_000,), log_alpha))
    shut, opened = 1 / (1 + math.exp(log_alpha)), 1 / (1 + 5 * math.exp(-log_alpha))
    assert float((draws == 0).float().mean()) == pytest.approx(shut, abs=5e-3)
    assert float((draws == 1).float().mean()) == pytest.approx(opened, abs=5e-3)
    s = 1 / (1 + math.exp(-log_alpha))
    sure = float(sure_gates(torch.tensor(log_alpha)))
    assert sure == pytest.approx(min(1.0, max(0.0, 3 * s - 1.5)), abs=1e-6)


@pytest.mark.parametrize("lr", [1e-5, 1e-3])
def test_gates_learn_at_their_own_rate_and_do_not_decay(lr: float) -> None:
    """As in the authors' code, whose gates have AdamW's of their own at 0.1, without decay."""
    method = adapted("diff_pruning", roberta(), target=0.5)
    built = build_optimizer(
        method.model,
        OptimizerConfig(weight_decay=0.5, warmup=0.0),
        lr,
        total_steps=10,
        ratios=method.all_lr_ratios(lr, head_lr=None),
    )
    gates = {id(gated.log_alpha) for gated in method.differences.values()}
    found = 0
    for group in built["optimizer"].param_groups:
        for parameter in group["params"]:
            if id(parameter) in gates:
                assert group["lr"] == pytest.approx(0.1)
                assert group["weight_decay"] == 0.0
                found += 1
            else:
                assert group["lr"] == lr
    assert found == len(gates)


def test_an_average_follows_the_difference_that_takes_its_gate_in() -> None:
    method = adapted("diff_pruning", roberta(), target=0.5, warmup=0.0, final=0.5)
    gated = method.differences["roberta.encoder.layer.0.attention.self.query.weight"]
    torch.nn.init.normal_(gated.difference)
    gated.log_alpha.data.normal_()  # most gates are neither open nor shut
    average = {n: p.detach().clone() for n, p in method.model.named_parameters()}
    allocator = method.allocator(2)  # the freeze is its first step
    assert allocator.step()
    carry_over(method.model, [], average, allocator.carried())
    for name, parameter in method.model.named_parameters():
        if name.endswith(".difference"):
            assert torch.equal(average[name], parameter), name
    assert bool(gated.mask.any())


def test_diff_pruning_keeps_the_budgets_weights_and_loads_again(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    method = adapted("diff_pruning", roberta(), target=0.5, warmup=0.0, final=0.5)
    nominal = method.kept
    allocator = method.allocator(6)
    before = {name: p.clone() for name, p in roberta().named_parameters()}
    method.model.train()
    penalties = []
    optimizer = torch.optim.AdamW(
        [p for p in method.model.parameters() if p.requires_grad], lr=0.02
    )
    for batch in batches(6):
        optimizer.zero_grad()
        penalty = method.penalty(allocator.frozen)
        loss = method.model(**batch).loss
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        allocator.step()
        penalties.append(penalty)
    assert penalties[0] is not None
    assert penalties[-1] is None
    # DDP ends a run in which what trains has no gradient: from the freeze on, the gates have none.
    trained_now = [p for p in method.model.parameters() if p.requires_grad]
    assert len(trained_now) < sum(len(group["params"]) for group in optimizer.param_groups)
    assert all(p.grad is not None for p in trained_now)
    assert nominal == 0.5 * 2 * (4 * 32 + 2 * 48) == method.adapter_parameters()
    assert int(allocator.active_count()) == nominal
    method.model.eval()
    folder = tmp_path / "sparse"
    method.export(folder, "base", None)
    trained = load_file(folder / "trained.safetensors")
    assert sum(len(t) for key, t in trained.items() if key.endswith(".values")) == nominal
    plain = add_sparse(roberta(), trained)
    differing = 0
    for name, parameter in plain.named_parameters():
        if not name.startswith("classifier"):
            differing += int((parameter != before[name]).sum())
    assert 0.9 * nominal < differing <= nominal
    batch = batches(1)[0]
    torch.testing.assert_close(plain(**batch).logits, method.model(**batch).logits)
    with pytest.raises(ValueError, match="does not have"):
        add_sparse(torch.nn.Linear(2, 2), trained)
