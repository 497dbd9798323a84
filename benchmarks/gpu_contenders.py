"""The ways to train that `gpu_steps.py` times beside each other on an accelerator.

Peers are taken from their released packages.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import peft
import torch
import transformers
from step_contenders import trainer_of
from torch import Tensor, nn

from dynarank import (
    BudgetSchedule,
    DoRALinear,
    RankAllocator,
    add_orthogonality_gradient,
    cut_to_kept,
    inject,
    mark_trainable,
)
from dynarank.allocation.dem import add_dem_gradient

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {"tiny": (64, 128, 4, 2), "1b": (2048, 8192, 32, 8), "8b": (4096, 14336, 32, 8)}
"""Hidden size, inner size, heads, and heads of keys and values."""
VOCABULARY = 1024  # no contender trains the embeddings
LONG = 10**6  # steps of the run that a schedule is made for


@dataclass
class Contender:
    """One way to train, and what was measured of it; `-1` where the device cannot tell."""

    name: str
    step: Callable[[], Any]
    times: list[float] = field(default_factory=list)
    """Seconds of a step, where steps follow each other."""
    host: list[float] = field(default_factory=list)
    """Seconds in which the host has told an idle device all of a step."""
    peak: float = -1
    """MiB at a step's peak, with what the contender holds between steps."""
    counts: tuple[int, int] = (-1, -1)
    """Kernels of a step, and copies to the host."""


Build = Callable[[], Contender]


@dataclass
class Setting:
    """What the contenders of one table have in common."""

    size: str
    rank: int
    dropout: float
    given: argparse.Namespace

    @property
    def target(self) -> int:
        """The mean rank that is left in the end, of an allocation that starts with `rank`."""
        return max(1, 2 * self.rank // 3)


def base_model(setting: Setting) -> Any:
    """Return a frozen model with random weights, made on the device, in bfloat16."""
    hidden, inner, heads, key_heads = SIZES[setting.size]
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        num_hidden_layers=setting.given.blocks,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(setting.given.device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.bfloat16
        )
    if setting.given.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    # The gradient goes through the whole model, the bound's too.
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _, __, output: output.requires_grad_())
    return model.requires_grad_(False).train()


def steps_of(
    name: str, setting: Setting, model: nn.Module, before: Any = None, after: Any = None
) -> Contender:
    """Return a contender that trains the model; `before` the update and `after` it."""
    shape = (setting.given.batch, setting.given.length)
    tokens = torch.randint(0, VOCABULARY, shape, device=setting.given.device)

    def loss(tokens: Tensor) -> Any:
        with torch.autocast(setting.given.device, torch.bfloat16):
            return model(input_ids=tokens, labels=tokens).loss

    return Contender(name, partial(trainer_of(model, loss, before, after), tokens))


def bound(setting: Setting) -> Contender:
    return steps_of("bound", setting, base_model(setting))


def peft_lora(setting: Setting) -> Contender:
    config = peft.LoraConfig(
        r=setting.rank,
        lora_dropout=setting.dropout,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )
    return steps_of("PEFT LoRA", setting, peft.get_peft_model(base_model(setting), config))


def peft_adalora(setting: Setting) -> Contender:
    # Given labels, PEFT's model adds the orthogonality's penalty to the loss itself.
    config = peft.AdaLoraConfig(
        init_r=setting.rank,
        target_r=setting.target,
        lora_dropout=setting.dropout,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
        total_step=LONG,
        tinit=0,
        tfinal=LONG // 10,
        deltaT=10,
    )
    model = peft.get_peft_model(base_model(setting), config)
    taken = [0]

    def after() -> None:
        taken[0] += 1
        model.base_model.update_and_allocate(taken[0])

    return steps_of("PEFT AdaLoRA", setting, model, after=after)


def recipe_model(setting: Setting) -> tuple[nn.Module, dict[str, DoRALinear]]:
    """Return a model that is adapted as `method=dynarank` has it: unit directions, and c fixed."""
    model = base_model(setting)
    layers = inject(
        model,
        TARGETS,
        r=setting.rank,
        alpha=setting.rank / setting.target,
        dropout=setting.dropout,
        start="orthogonal_A",
    )
    mark_trainable(model)
    return model, layers


def dynarank_recipe(setting: Setting) -> Contender:
    model, layers = recipe_model(setting)
    schedule = BudgetSchedule(setting.rank, setting.target, total=LONG, shape="cubic_adalora")
    allocator = RankAllocator(layers, schedule, regrow=False, score="fisher", cost_aware=True)

    def before() -> None:
        allocator.observe()
        add_orthogonality_gradient(layers, 0.1)

    return steps_of("dynarank, recipe", setting, model, before, allocator.step)


def dynarank_paper(setting: Setting) -> Contender:
    model = base_model(setting)
    layers = inject(model, TARGETS, r=setting.rank, dropout=setting.dropout)
    mark_trainable(model)
    allocator = RankAllocator(layers, BudgetSchedule(setting.rank, setting.target, total=LONG))
    add_penalty = partial(add_dem_gradient, layers, 0.1)
    return steps_of("dynarank, paper's form", setting, model, add_penalty, allocator.step)


def dynarank_frozen(setting: Setting) -> Contender:
    model, layers = recipe_model(setting)
    kept = {}
    for index, name in enumerate(layers):
        left = setting.rank // 2 if index % 2 else 0
        kept[name] = torch.arange(setting.rank, device=setting.given.device) < left
    cut_to_kept(model, kept)
    return steps_of("dynarank, cut, half at rank 0", setting, model)


STEP_BUILDERS = (
    bound,
    peft_lora,
    peft_adalora,
    dynarank_recipe,
    dynarank_paper,
    dynarank_frozen,
)


def layer_builders(setting: Setting, d_in: int, d_out: int) -> Iterator[Build]:
    """Yield what makes each form of one adapted linear map, over one input and gradient."""
    device = setting.given.device
    rows = setting.given.rows
    options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    x = torch.randn(rows, d_in, **options).requires_grad_()
    dy = torch.randn(rows, d_out, **options)

    def of(name: str, module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Contender:
        inputs = [x, *(one for one in module.parameters() if one.requires_grad)]

        def step() -> None:
            with torch.autocast(device, torch.bfloat16):
                y = forward(x)
            torch.autograd.grad(y, inputs, dy)

        return Contender(name, step)

    def linear() -> nn.Linear:
        return nn.Linear(d_in, d_out, bias=False, **options).requires_grad_(False)

    def plain_linear() -> Contender:
        base = linear()
        return of("bound", base, base)

    def peft_layer() -> Contender:
        config = peft.LoraConfig(r=setting.rank, lora_dropout=setting.dropout, target_modules=["0"])
        model = peft.get_peft_model(nn.Sequential(linear()), config).train()
        return of("PEFT LoRA", model, model.base_model.model[0])

    def adapted() -> DoRALinear:
        return DoRALinear(linear(), setting.rank, dropout=setting.dropout, start="lora").train()

    def fast() -> Contender:
        layer = adapted()
        return of("dynarank, fast path", layer, layer)

    def plain() -> Contender:
        layer = adapted()
        return of("dynarank, plain form", layer, layer.plain_forward)

    def compiled() -> Contender:
        layer = adapted()
        torch._dynamo.reset()  # each table compiles anew, within torch's limit of variants
        forward = torch.compile(layer.plain_forward, dynamic=False)
        return of("dynarank, plain form compiled", layer, forward)

    yield from (plain_linear, peft_layer, fast, plain)
    if not setting.given.no_compile:
        yield compiled
