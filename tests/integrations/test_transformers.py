"""The callback in transformers' Trainer and in TRL's SFTTrainer."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from killing import be_rank, begin_ranks, wait_for
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent))
from door_models import MODELS, TARGETS, Rows, batch

from dynarank.integrations.peft import DynaRankConfig, attach, finalize, gated_layers
from dynarank.integrations.transformers import RankAllocationCallback

STEPS = 12


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**settings, **changes})


def adapted(kind: str = "bert", **changes: Any) -> Any:
    settings: dict[str, Any] = {"r": 4, "target_modules": TARGETS[kind], "lora_dropout": 0.1}
    if kind == "bert":
        settings |= {"modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
    return peft.get_peft_model(MODELS[kind](), peft.LoraConfig(**{**settings, **changes}))


def allocation(**changes: Any) -> RankAllocationCallback:
    settings: dict[str, Any] = {"target": 2, "interval": 2, "warmup": 0.1, "final": 0.3}
    return RankAllocationCallback(**{**settings, **changes})


def trainer_of(
    folder: Path, callback: RankAllocationCallback, *others: TrainerCallback, **changes: Any
) -> Trainer:
    return Trainer(
        model=adapted(),
        args=arguments(folder, **changes),
        train_dataset=Rows("bert"),
        eval_dataset=Rows("bert", count=8),
        callbacks=[callback, *others],
    )


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=batch("bert")["input_ids"]).logits


class StopAt(TrainerCallback):
    """Stops as a kill would: an exception behind a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_three_lines_end_at_budget_as_plain_lora(tmp_path: Path) -> None:
    callback = allocation()
    trainer = trainer_of(tmp_path, callback)
    trainer.train()
    ranks = callback.ranks
    assert ranks is not None
    assert sum(ranks.values()) == 2 * len(ranks)
    assert callback.allocator is not None
    assert callback.allocator.t == STEPS
    assert gated_layers(trainer.model) == {}
    trainer.save_model(str(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(MODELS["bert"](), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again), logits(trainer.model), rtol=0, atol=1e-6)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == STEPS
    assert logged[0]["budget/scheduled"] == 4
    assert logged[-1]["budget/scheduled"] == 2
    assert logged[-1]["budget/nonzero"] == 2 * len(ranks)
    assert logged[-1]["score/q05"] <= logged[-1]["score/q95"]


@pytest.mark.parametrize("score", ["relative", "sensitivity"])
def test_a_resumed_run_is_equal_to_the_bit(score: str, tmp_path: Path) -> None:
    whole = trainer_of(
        tmp_path / "whole", allocation(score=score), save_strategy="steps", save_steps=5
    )
    whole.train()
    parts = [allocation(score=score), StopAt(6)]
    first = trainer_of(tmp_path / "parts", *parts, save_strategy="steps", save_steps=5)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    callback = allocation(score=score)
    second = trainer_of(tmp_path / "parts", callback, save_strategy="steps", save_steps=5)
    second.train(resume_from_checkpoint=True)
    ours, theirs = whole.model.state_dict(), second.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    last = [load_file(tmp_path / part / "checkpoint-12" / "dynarank.safetensors")
            for part in ("whole", "parts")]  # fmt: skip
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    middle = peft.PeftModel.from_pretrained(
        MODELS["bert"](), str(tmp_path / "whole" / "checkpoint-5")
    )
    assert middle.peft_config["default"].r == 4
    frozen = trainer_of(tmp_path / "whole", allocation(score=score))
    frozen.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
    late = frozen.model.state_dict()
    assert all(torch.equal(ours[name], late[name]) for name in ours)


def test_a_folder_that_is_used_again_holds_the_new_runs_state(tmp_path: Path) -> None:
    for seed in (1, 2):
        trainer_of(tmp_path, allocation(), save_strategy="steps", save_steps=5, seed=seed).train()
    trainer_of(tmp_path, allocation(), seed=2).train(resume_from_checkpoint=True)


def test_resuming_without_the_allocations_state_is_refused(tmp_path: Path) -> None:
    trainer_of(tmp_path, allocation(), save_strategy="steps", save_steps=5).train()
    moved = tmp_path / "checkpoint-5"
    state = moved / "dynarank.safetensors"
    state.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match=r"no state of the allocation.*resume_from"):
        trainer_of(tmp_path, allocation()).train(resume_from_checkpoint=str(moved))
    (tmp_path / "other").mkdir()
    (tmp_path / "elsewhere.safetensors").rename(tmp_path / "other" / "dynarank.safetensors")
    elsewhere = allocation(resume_from=tmp_path / "other")
    trainer_of(tmp_path, elsewhere).train(resume_from_checkpoint=str(moved))
    changed = trainer_of(tmp_path, allocation(resume_from=tmp_path / "other", interval=3))
    with pytest.raises(ValueError, match="interval was 2, is 3"):
        changed.train(resume_from_checkpoint=str(moved))
    wrong = trainer_of(tmp_path, allocation(resume_from=tmp_path / "checkpoint-10"))
    with pytest.raises(ValueError, match="of another checkpoint"):
        wrong.train(resume_from_checkpoint=str(moved))
    (tmp_path / "other" / "dynarank.safetensors").write_bytes(b"\x08")
    with pytest.raises(ValueError, match="is damaged"):
        trainer_of(tmp_path, elsewhere).train(resume_from_checkpoint=str(moved))


def test_dem_is_counted_once_a_step_whatever_the_accumulation(tmp_path: Path) -> None:
    spreads = []
    for accumulation in (1, 4):
        trainer = trainer_of(
            tmp_path, allocation(eta=50.0, finalize_at_end=False), lr_scheduler_type="constant",
            optim="sgd", gradient_accumulation_steps=accumulation, learning_rate=1e-3,
        )  # fmt: skip
        for layer in gated_layers(trainer.model).values():
            # c stays zero, so that the loss has no gradient in A: DEM alone moves it
            layer.lora_c.register_hook(torch.zeros_like)
        trainer.train()
        layers = gated_layers(trainer.model)
        spreads.append(torch.cat([layer.lora_A.flatten() for layer in layers.values()]))
    torch.testing.assert_close(spreads[0], spreads[1], rtol=1e-4, atol=1e-6)


def test_a_wide_start_can_be_calmed(tmp_path: Path) -> None:
    sizes = []
    for power in (0.0, 1.0):
        # Nearly all steps lie before the freeze; at the start a step is a quarter as long.
        settings = {"target": 1, "final": 0.1, "start": "lora", "rate_power": power}
        callback = allocation(**settings, finalize_at_end=False)
        trainer = trainer_of(tmp_path, callback, lr_scheduler_type="constant")
        trainer.train()
        grown = [layer.lora_B.norm() for layer in gated_layers(trainer.model).values()]
        sizes.append(torch.stack(grown).mean().item())
    assert sizes[1] < 0.7 * sizes[0]


def test_ending_before_the_freeze_is_said(tmp_path: Path) -> None:
    class Enough(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 3

    callback = allocation()
    trainer = trainer_of(tmp_path, callback, Enough())
    with pytest.warns(UserWarning, match="ended after 3 optimizer steps.*not at its budget of 12"):
        trainer.train()
    assert callback.ranks is None
    assert gated_layers(trainer.model)


def test_the_best_model_is_one_at_budget(tmp_path: Path) -> None:
    callback = allocation()
    trainer = trainer_of(
        tmp_path, callback, eval_strategy="steps", eval_steps=2, save_strategy="steps",
        save_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_step",
        greater_is_better=False,
    )  # fmt: skip
    count = iter(range(100))
    # The first evaluation would be the best, far over the budget.
    trainer.compute_metrics = lambda _: {"step": next(count)}
    trainer.train()
    freeze = callback.allocator.schedule.freeze_step  # type: ignore[union-attr]
    assert trainer.state.best_global_step >= freeze
    assert callback.ranks is not None
    assert sum(callback.ranks.values()) <= 2 * len(callback.ranks)


def test_early_stopping_counts_from_the_freeze_on(tmp_path: Path) -> None:
    callback = allocation()
    trainer = trainer_of(
        tmp_path, callback, EarlyStoppingCallback(2), eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, save_total_limit=1, load_best_model_at_end=True,
        metric_for_best_model="eval_step", greater_is_better=False,
    )  # fmt: skip
    count = iter(range(100))
    trainer.compute_metrics = lambda _: {"step": next(count)}  # worse each time
    trainer.train()
    freeze = callback.allocator.schedule.freeze_step  # type: ignore[union-attr]
    assert (trainer.state.best_global_step, trainer.state.global_step) == (freeze, freeze + 2)


def test_a_step_that_the_loss_scaler_skips_does_not_count() -> None:
    callback = allocation()
    model = adapted()
    control, state = SimpleNamespace(), SimpleNamespace(max_steps=STEPS, global_step=0)
    arguments_ = SimpleNamespace(output_dir=None, deepspeed=None, fsdp=None)
    callback.on_init_end(arguments_, state, control, model=model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    wrapped = SimpleNamespace(optimizer=optimizer)  # as accelerate wraps it
    callback.on_train_begin(arguments_, state, control, model=model, optimizer=wrapped)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for loss_factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(model(**batch("bert")).loss * loss_factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert callback.allocator is not None
    assert callback.allocator.t == 2


def test_bfloat16_autocast_keeps_the_factors_in_float32(tmp_path: Path) -> None:
    callback = allocation(finalize_at_end=False)
    trainer = trainer_of(tmp_path, callback, bf16=True)
    trainer.train()
    layers = gated_layers(trainer.model)
    assert all(
        layer.lora_A.dtype == layer.lora_c.dtype == torch.float32 for layer in layers.values()
    )
    assert sum(callback.ranks.values()) == 2 * len(layers)  # type: ignore[union-attr]


def test_training_on_after_the_end_is_plain_lora(tmp_path: Path) -> None:
    callback = allocation()
    trainer = trainer_of(tmp_path, callback)
    trainer.train()
    ranks = callback.ranks
    factors = [p for name, p in trainer.model.named_parameters() if "lora_" in name]
    before = [factor.detach().clone() for factor in factors]
    with pytest.warns(UserWarning, match="trained on as plain LoRA"):
        trainer.train()
    assert callback.ranks == ranks
    assert not any(torch.equal(*pair) for pair in zip(factors, before, strict=True))


def test_an_optimizer_from_before_finalize_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, allocation(finalize_at_end=False))
    trainer.train()
    finalize(trainer.model)
    with pytest.raises(ValueError, match=r"trainer\.optimizer = None"):
        trainer.train()
    trainer.optimizer = None
    with pytest.warns(UserWarning, match="trained on as plain LoRA"):
        trainer.train()


def test_settings_come_from_attach_too(tmp_path: Path) -> None:
    model = adapted()
    attach(model, target=1, interval=2)
    callback = RankAllocationCallback()
    Trainer(
        model=model, args=arguments(tmp_path), train_dataset=Rows("bert"), callbacks=[callback]
    ).train()
    assert sum(callback.ranks.values()) == len(callback.ranks)  # type: ignore[union-attr, arg-type]


def test_model_init_gates_the_models_that_it_makes(tmp_path: Path) -> None:
    targets = iter([2, 2, 1])  # the first model is made for the Trainer's own look at it

    def attached() -> Any:
        model = adapted()
        attach(model, target=next(targets), interval=2)
        return model

    callback = RankAllocationCallback()
    given = {"args": arguments(tmp_path, max_steps=6), "train_dataset": Rows("bert")}
    trainer = Trainer(model_init=attached, callbacks=[callback], **given)
    for target in (2, 1):
        trainer.train()
        assert sum(callback.ranks.values()) == target * len(callback.ranks)  # type: ignore[union-attr, arg-type]
        assert gated_layers(trainer.model) == {}
    plain = Trainer(model_init=lambda: adapted(), callbacks=[allocation()], **given)
    with pytest.raises(ValueError, match=r"attach\(model, target=\.\.\.\) in model_init"):
        plain.train()


def test_refusals_come_before_training(tmp_path: Path) -> None:
    plain = {"args": arguments(tmp_path), "train_dataset": Rows("bert")}
    with pytest.raises(ValueError, match="no LoRA layers of PEFT"):
        Trainer(model=MODELS["bert"](), callbacks=[allocation()], **plain)
    with pytest.raises(ValueError, match="target = 9"):
        Trainer(model=adapted(), callbacks=[allocation(target=9)], **plain)
    with pytest.raises(ValueError, match="has no target"):
        Trainer(model=adapted(), callbacks=[RankAllocationCallback()], **plain)
    late = Trainer(model=adapted(), **plain)
    late.add_callback(allocation())
    with pytest.raises(ValueError, match=r"callbacks=\[...\]"):
        late.train()
    for sharded in ({"deepspeed": "zero3.json"}, {"fsdp": "full_shard"}):
        given = SimpleNamespace(**{"deepspeed": None, "fsdp": None, **sharded})
        with pytest.raises(ValueError, match=r"do not work under (DEEPSPEED|FSDP)"):
            allocation().on_init_end(given, None, None, model=adapted())


def train_as_a_rank(rank: int, world: int, port: int, folder: Path) -> None:
    """Be one of several processes, as torchrun starts them. The second would choose otherwise."""
    be_rank(rank, world, port)
    torch.set_num_threads(1)
    callback = allocation(eta=0.1)
    trainer = trainer_of(folder, callback, ddp_backend="gloo")
    begin = callback.on_train_begin

    def drift(*arguments: Any, **named: Any) -> None:
        begin(*arguments, **named)
        if torch.distributed.get_rank() == 1:
            assert callback.allocator is not None
            callback.allocator.ema += torch.rand(callback.allocator.ema.shape)

    callback.on_train_begin = drift  # type: ignore[method-assign]
    trainer.train()
    torch.save((callback.ranks, trainer.model.state_dict()), folder / f"{rank}.pt")


def test_all_processes_take_one_decision(tmp_path: Path) -> None:
    assert wait_for(begin_ranks(train_as_a_rank, 2, tmp_path)) == [0, 0]
    (ranks, state), (other_ranks, other_state) = (torch.load(tmp_path / f"{i}.pt") for i in (0, 1))
    assert ranks == other_ranks
    assert sum(ranks.values()) == 2 * len(ranks)
    assert all(torch.equal(state[name], other_state[name]) for name in state)


@pytest.mark.parametrize("config_kind", ["LoraConfig", "DynaRankConfig"])
def test_trls_sft_trainer(config_kind: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    import datasets
    from tiny import sentences, write_tokenizer
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path / "tokenizer")
    plain = {"target_modules": TARGETS["llama"], "r": 4}
    if config_kind == "LoraConfig":
        config, callback = peft.LoraConfig(**plain), allocation()
    else:
        config = DynaRankConfig(target=2, interval=2, **plain)
        callback = RankAllocationCallback()
    names = ("output_dir", "max_steps", "per_device_train_batch_size", "learning_rate", "report_to",
             "use_cpu", "save_strategy", "gradient_accumulation_steps")  # fmt: skip
    given = arguments(tmp_path)
    settings = {name: getattr(given, name) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.SFTTrainer(
            model=MODELS["llama"](),
            args=trl.SFTConfig(**settings, max_length=16, bf16=False),
            train_dataset=datasets.Dataset.from_dict({"text": sentences(48, 0)}),
            processing_class=AutoTokenizer.from_pretrained(tmp_path / "tokenizer"),
            peft_config=config,
            callbacks=[callback],
        )
        trainer.train()
    assert callback.ranks is not None
    assert sum(callback.ranks.values()) == 2 * len(callback.ranks)
    trainer.save_model(str(tmp_path / "adapter"))
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA"
    assert "target" not in saved
    again = peft.PeftModel.from_pretrained(MODELS["llama"](), str(tmp_path / "adapter")).eval()
    tokens = batch("llama")["input_ids"] % 26
    with torch.no_grad():
        got = again(input_ids=tokens).logits
        wanted = trainer.model.eval()(input_ids=tokens).logits
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
