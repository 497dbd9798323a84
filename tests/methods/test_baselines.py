"""The baselines: what they train and count, and that PEFT's are driven as PEFT means them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, AdaLoraModel
from tiny import configure, tiny_bart, tiny_roberta, tiny_t5
from torch import nn
from transformers import GPT2Config

from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.methods import build_method
from dynarank.methods.adalora import AdaLoRAAllocation
from dynarank.methods.bottleneck import BottleneckLinear, bottleneck_parameters
from dynarank.methods.config import AdaLoRAConfig, LoRAConfig, MethodConfig, PromptConfig
from dynarank.methods.exact_adalora import triplet_scores
from dynarank.pretrained.architectures import ARCHITECTURES
from dynarank.pretrained.hub import HubConfig
from dynarank.runs.predictor import load_predictor
from dynarank.runs.run import run

CONFIGS = {"lora": LoRAConfig, "adalora": AdaLoRAConfig, "prompt": PromptConfig}


def roberta(config: Any, device: str = "cpu") -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForSequenceClassification.from_config(config)


def adapted(name: str, model: Any, **budget: Any) -> Any:
    method = build_method(
        CONFIGS.get(name, MethodConfig)(name=name), BudgetConfig(**budget), DemConfig()
    )
    method.adapt(model, ARCHITECTURES["roberta"].targets, ["classifier"])
    return method


@pytest.mark.parametrize(
    "name", ["lora", "adalora", "houlsby", "pfeiffer", "bitfit", "full", "prompt"]
)
def test_a_whole_run_predicts_what_it_scored(name: str, hub_root: Path, tmp_path: Path) -> None:
    reserved = ["method.reserved=40"] if name == "prompt" else []
    settings = [
        "trainer.epochs=3",
        "budget.interval=1",
        "optimizer.lr=0.01",
        "task=mrpc",
        *reserved,
    ]
    results = run(configure(tmp_path, hub_root, f"method={name}", *settings))
    if name in ("lora", "adalora"):
        assert results.components_kept == results.components_target == 24
    predictor = load_predictor(tmp_path, HubConfig(str(hub_root)), device="cpu")
    predictor.task.read(HubConfig(str(hub_root)))
    rows = predictor.task.validation["validation"]
    names = predictor.task.config.labels
    right = [
        names.index(r["label"]) == label
        for r, label in zip(predictor(rows), rows["label"][:], strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(results.metrics["accuracy"])


@pytest.mark.parametrize(("target", "within"), [(2, 0.06), (8, 0.02)])
def test_budgets_are_matched_as_far_as_sizes_are_whole(target: int, within: float) -> None:
    from transformers import RobertaConfig

    config = RobertaConfig(max_position_embeddings=514)
    nominal = target * 12 * (4 * (768 + 768) + 2 * (768 + 3072))
    for name in ("lora", "houlsby", "pfeiffer"):
        method = adapted(name, roberta(config, "meta"), target=target)
        assert method.adapter_parameters() == pytest.approx(
            nominal, rel=0 if name == "lora" else within
        )


@pytest.mark.parametrize(("name", "places"), [("houlsby", 2), ("pfeiffer", 1)])
def test_bottlenecks_stand_behind_the_sublayers_and_count_as_in_the_papers(
    name: str, places: int
) -> None:
    model = roberta(tiny_roberta())
    method = adapted(name, model, target=4)
    found = {
        key: module for key, module in model.named_modules() if isinstance(module, BottleneckLinear)
    }
    ends = (
        ["attention.output.dense", "output.dense"][-places:]
        if places == 1
        else ["attention.output.dense", "output.dense"]
    )
    assert list(found) == [
        f"roberta.encoder.layer.{layer}.{end}" for layer in (0, 1) for end in ends
    ]
    m = next(iter(found.values())).down.out_features
    assert (
        method.adapter_parameters()
        == len(found) * (2 * 16 * m + m + 16)
        == len(found) * bottleneck_parameters(16, m)
    )


def test_a_bottleneck_adds_its_network_to_the_sublayers_output() -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(5, 7), torch.randn(3, 5)
    layer = BottleneckLinear(base, 2)
    torch.testing.assert_close(layer(x), base(x))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    h = base(x)
    inner = torch.nn.functional.gelu(h @ layer.down.weight.T + layer.down.bias)
    torch.testing.assert_close(layer(x), h + inner @ layer.up.weight.T + layer.up.bias)


def test_bitfit_trains_the_biases_and_the_head() -> None:
    model = roberta(tiny_roberta())
    method = adapted("bitfit", model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        n for n, _ in model.named_parameters() if n.endswith(".bias") or n.startswith("classifier.")
    }
    assert method.adapter_parameters() == sum(
        p.numel()
        for n, p in model.named_parameters()
        if n.endswith(".bias") and not n.startswith("classifier.")
    )


def test_prompts_do_not_fit_question_answering() -> None:
    from transformers import AutoModelForQuestionAnswering

    method = build_method(PromptConfig(name="prompt"), BudgetConfig(), DemConfig())
    with pytest.raises(ValueError, match="does not fit a RobertaForQuestionAnswering"):
        method.adapt(
            AutoModelForQuestionAnswering.from_config(tiny_roberta()), ["query"], ["qa_outputs"]
        )


def steps(model: Any, count: int, after: Any) -> None:
    """Optimizer steps on fixed batches; `after(t)` is called with the gradients in place."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    draw = torch.Generator().manual_seed(0)
    model.eval()  # no dropout: two ways of driving see the same
    for t in range(1, count + 1):
        ids = torch.randint(3, 30, (4, 9), generator=draw)
        optimizer.zero_grad()
        after_loss = model(input_ids=ids, labels=torch.randint(0, 2, (4,), generator=draw)).loss
        after(t, after_loss)
        optimizer.step()
        after(t, None)


def test_adalora_does_what_pefts_own_loop_does() -> None:
    """Against `get_peft_model` driven as PEFT's documentation says: same losses, masks and weights.

    Without a task type PEFT would silently leave its regularization out.
    """
    from peft import AdaLoraConfig, get_peft_model

    method = adapted(
        "adalora", roberta(tiny_roberta()), target=2, init=4, interval=2, warmup=0.2, final=0.3
    )
    allocator = method.allocator(20)
    for layer in method.layers.values():
        torch.manual_seed(layer.in_features)
        nn.init.normal_(layer.lora_E["default"])
    reference = roberta(tiny_roberta())
    names = list(method.layers)
    config = AdaLoraConfig(
        init_r=4,
        target_r=2,
        tinit=4,
        tfinal=6,
        deltaT=2,
        total_step=20,
        lora_alpha=32,
        lora_dropout=0.1,
        target_modules=names,
        modules_to_save=["classifier"],
        task_type="SEQ_CLS",
    )
    peft_model = get_peft_model(reference, config)
    our_state = {n: p for n, p in method.model.named_parameters() if "lora_" in n}
    for name, parameter in reference.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(our_state[name].data)

    def after_our_step(t: int, loss: Any) -> None:
        (loss + method.penalty(False)).backward() if loss is not None else allocator.step()

    def after_pefts_step(t: int, loss: Any) -> None:
        loss.backward() if loss is not None else peft_model.base_model.update_and_allocate(t)

    steps(method.model, 20, after_our_step)
    steps(peft_model, 20, after_pefts_step)
    assert allocator.frozen
    assert sum(method.ranks().values()) == 2 * 12
    other = dict(reference.named_parameters())
    for name, parameter in method.model.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(parameter, other[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("init", [2, 4])
def test_adaloras_ranks_are_exact_under_ties_and_without_pruning(init: int) -> None:
    method = adapted("adalora", roberta(tiny_roberta()), target=2, init=init, interval=1)
    allocator = method.allocator(10)

    def after(t: int, loss: Any) -> None:
        if loss is not None:
            (0 * loss + method.penalty(False)).backward()  # no task gradient: every E scores zero
            for layer in method.layers.values():
                layer.lora_A["default"].grad.zero_()
                layer.lora_B["default"].grad.zero_()
                layer.lora_E["default"].grad = torch.zeros_like(layer.lora_E["default"])
                layer.lora_E["default"].data.fill_(1.0)
        else:
            allocator.step()

    steps(method.model, 10, after)
    assert sum(method.ranks().values()) == 2 * 12


def test_adaloras_freeze_before_its_first_score_is_told(caplog: pytest.LogCaptureFixture) -> None:
    method = adapted("adalora", roberta(tiny_roberta()), target=1, init=3)
    method.allocator(2)
    assert "budget.final = 0.5: of 2 steps, the ranks are final after step 1, bef" in caplog.text
    caplog.clear()
    assert method.allocator(3).schedule.freeze_step == 2
    unpruned = adapted("adalora", roberta(tiny_roberta()), target=2, init=2)
    assert unpruned.allocator(2).schedule.freeze_step == 1
    assert not caplog.text


def test_adalora_resumes_where_it_stopped() -> None:
    def make() -> tuple[Any, Any]:
        method = adapted("adalora", roberta(tiny_roberta()), target=2, init=4, interval=2)
        return method, method.allocator(20)

    def driven(method: Any, allocator: Any, count: int) -> None:
        def after(t: int, loss: Any) -> None:
            (loss + method.penalty(False)).backward() if loss is not None else allocator.step()

        steps(method.model, count, after)

    first, allocator = make()
    driven(first, allocator, 6)
    again, other = make()
    again.model.load_state_dict(first.model.state_dict())
    other.load_state_dict(allocator.state_dict())
    for method, one in ((first, allocator), (again, other)):
        driven(method, one, 8)
    assert first.ranks() == again.ranks()
    state = again.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in first.model.state_dict().items())


def test_adalora_as_plain_lora_computes_the_same() -> None:
    method = adapted("adalora", roberta(tiny_roberta()), target=2, init=4)
    for layer in method.layers.values():
        nn.init.normal_(layer.lora_E["default"])
        layer.lora_E["default"].data[1] = 0
        layer.eval()
        x = torch.randn(3, layer.in_features)
        name = next(n for n, one in method.layers.items() if one is layer)
        A, B = method.factors()[name]
        assert A.shape[0] == 3
        torch.testing.assert_close(
            layer(x), layer.base_layer(x) + x @ A.T @ B.T, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    "config", [tiny_bart(), tiny_t5(), GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2)]
)
def test_prompts_do_not_fit_classification_by_a_decoder(config: Any) -> None:
    """Given embeddings for tokens, BART and T5 raise, and GPT-2 reads the class at a padding."""
    method = build_method(PromptConfig(name="prompt"), BudgetConfig(), DemConfig())
    with pytest.raises(ValueError, match="it fits encoders for classification"):
        method.adapt(roberta(config), ARCHITECTURES[config.model_type].targets, [])


@pytest.mark.parametrize("config", [tiny_bart(), tiny_t5()])
def test_every_prompt_vector_of_a_generator_trains(config: Any) -> None:
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_config(config)
    method = build_method(PromptConfig(name="prompt", reserved=40), BudgetConfig(), DemConfig())
    adapted = method.adapt(model, ARCHITECTURES[config.model_type].targets, [])
    adapted(
        input_ids=torch.tensor([[5, 6, 2]]),
        attention_mask=torch.ones(1, 3),
        labels=torch.tensor([[5, 2]]),
    ).loss.backward()
    vectors = adapted.get_parameter("prompt_encoder.default.embedding.weight")
    assert (vectors.grad.abs().sum(dim=1) > 0).all()
    assert (
        method.adapter_parameters()
        == vectors.numel()
        == 16 * (24 if config.model_type == "bart" else 72)
    )


def test_prompts_take_the_width_of_the_token_embeddings() -> None:
    from transformers import DistilBertConfig, ElectraConfig

    sizes = dict(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    for config in (
        DistilBertConfig(vocab_size=32, dim=16, hidden_dim=32, n_layers=1, n_heads=2),
        ElectraConfig(**sizes, embedding_size=8),
    ):
        method = build_method(PromptConfig(name="prompt"), BudgetConfig(), DemConfig())
        model = method.adapt(
            roberta(config), ARCHITECTURES[config.model_type].targets, ["classifier"]
        )
        assert model(
            input_ids=torch.tensor([[5, 6]]), attention_mask=torch.ones(1, 2)
        ).logits.shape == (1, 2)


def test_bitfit_finds_debertas_own_biases_and_needs_some_outside_the_head() -> None:
    from transformers import DebertaConfig

    sizes = dict(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = roberta(DebertaConfig(**sizes))
    build_method(MethodConfig(name="bitfit"), BudgetConfig(), DemConfig()).adapt(
        model, [], ["pooler", "classifier"]
    )
    trained = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert {"bias", "q_bias", "v_bias"} <= trained
    with pytest.raises(ValueError, match="has no biases"):
        build_method(MethodConfig(name="bitfit"), BudgetConfig(), DemConfig()).adapt(
            roberta(tiny_t5()), [], ["classification_head"]
        )


def test_pefts_private_scores_are_sensitivity_times_uncertainty() -> None:
    """The two private functions of PEFT's allocator that ours is built on."""
    method = adapted("adalora", roberta(tiny_roberta()), target=2, init=4)
    inner = method.allocator(20).inner
    E = "base.lora_E.default"
    draw = torch.Generator().manual_seed(0)
    shapes = {"lora_E": (4, 1), "lora_A": (4, 6), "lora_B": (5, 4)}
    products = {}
    for factor, shape in shapes.items():
        name = E.replace("lora_E", factor)
        inner.exp_avg_ipt[name] = torch.rand(shape, generator=draw)
        inner.exp_avg_unc[name] = torch.rand(shape, generator=draw)
        products[factor] = inner.exp_avg_ipt[name] * inner.exp_avg_unc[name]
    by_hand = [
        products["lora_E"][i, 0] + products["lora_A"][i].mean() + products["lora_B"][:, i].mean()
        for i in range(4)
    ]
    torch.testing.assert_close(triplet_scores(inner, E), torch.stack(by_hand))


def test_adaloras_allocation_leaves_pefts_configuration_alone() -> None:
    method = adapted("adalora", roberta(tiny_roberta()), target=2, init=4)
    before = method.tuner.peft_config["default"].to_dict()
    allocator = method.allocator(20)
    for _ in range(20):
        for parameter in method.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        allocator.step()
    assert allocator.frozen
    assert method.tuner.peft_config["default"].to_dict() == before


def test_adaloras_freeze_spends_a_budget_that_is_no_whole_number_of_triplets() -> None:
    """Of six alike matrices 0.25 is one triplet and a half; PEFT alone would round it down."""
    maps = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(6)])
    names = [str(i) for i in range(6)]
    config = AdaLoraConfig(init_r=1, target_r=1, target_modules=names, total_step=1)
    tuner = AdaLoraModel(maps, config, "default")
    schedule = BudgetSchedule(init=1, target=0.25, total=10, interval=1, shape="cubic_adalora")
    layers = {name: maps.get_submodule(name) for name in names}
    allocation = AdaLoRAAllocation(tuner, layers, schedule, cost_aware=True)
    freeze = schedule.freeze_step
    assert allocation.allowance(freeze - 1) >= 12
    assert allocation.allowance(freeze) == allocation.allowance(freeze + 1) == 12  # 1.5 x (4 + 4)


@pytest.mark.parametrize("unit", ["components", "parameters"])
@pytest.mark.parametrize("name", ["dora", "adalora"])
def test_a_budget_below_one_component_a_matrix_is_kept_to(name: str, unit: str) -> None:
    from transformers import RobertaConfig

    from dynarank.methods.dora_config import DoRAConfig

    small = RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=12,
    )  # fmt: skip
    config = DoRAConfig(name=name) if name == "dora" else AdaLoRAConfig(name=name)
    budget = BudgetConfig(target=0.3, unit=unit, interval=1, warmup=0, final=0.5)
    method = build_method(config, budget, DemConfig())
    model = method.adapt(roberta(small), ARCHITECTURES["roberta"].targets, ["classifier"])
    allocator = method.allocator(4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.arange(6)[None], labels=torch.tensor([1])).loss.backward()
        optimizer.step()
        allocator.step()
    # 12 matrices: 8 of 16 + 16, and 4 of 16 + 24 parameters a component.
    if unit == "components":
        assert sum(method.ranks().values()) == 4  # 3.6 of 12
    else:
        assert 125 - 40 < method.adapter_parameters() <= 125  # 0.3 x 416 = 124.8
        assert allocator.allowance(4) == 125


def test_lora_has_one_scale_under_any_placement() -> None:
    from transformers import RobertaConfig

    small = RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=12,
    )  # fmt: skip
    config = LoRAConfig(name="lora", placement="feed_forward")
    method = build_method(config, BudgetConfig(target=1.5), DemConfig())
    method.adapt(roberta(small), ARCHITECTURES["roberta"].targets, ["classifier"])
    ranks = method.ranks()
    assert len(ranks) == 12
    assert sorted(set(ranks.values())) == [0, 4]  # 624 parameters over 160 of feed-forward
    assert {layer.scaling["default"] for layer in method.layers.values()} == {16 / 1.5}
    for name, layer in method.layers.items():
        assert layer.lora_A["default"].weight.shape[0] == ranks[name]
