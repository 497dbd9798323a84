"""Coverage-guided fuzzing of what may come from strangers or be damaged: configurations, an
adapter's files, the files of a run that goes on, and those that a report reads. Not run by pytest.

python tests/fuzz/fuzz.py config -max_total_time=120
python tests/fuzz/fuzz.py adapter -max_total_time=120
python tests/fuzz/fuzz.py folder -max_total_time=120
python tests/fuzz/fuzz.py report -max_total_time=120

Anything but a user's error is a finding, which libFuzzer writes to a file beside; give that file to
see it again.
"""

from __future__ import annotations

import copy
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import atheris

with atheris.instrument_imports(include=["dynarank", "omegaconf"]):
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from dynarank.adapters import adapter_checks
    from dynarank.config.describe import setting_names
    from dynarank.config.guard import guarded
    from dynarank.config.schema import register_schemas, to_config
    from dynarank.errors import UserError
    from dynarank.pretrained.hub import HubConfig
    from dynarank.run_folder import ORIGIN
    from dynarank.runs import predictor

sys.path.insert(0, str(Path(__file__).parents[1]))
from damage import damaged
from folder_targets import folder_target, report_target
from tiny import CONF, tiny_roberta, write_model

HYDRA = [
    *(
        "hydra.callbacks.x",
        "hydra.job_logging.filters.x",
        "hydra.job.env_set.X",
        "hydra.run.dir",
        "hydra.sweep.subdir",
    ),
    *(
        "hydra.launcher",
        "hydra.verbose",
        "hydra.searchpath",
        "hydra.mode",
        "hydra/launcher",
        "hydra.output_subdir",
    ),
]
VALUES = [
    *(
        "null",
        "-1",
        "0",
        "1e999",
        "nan",
        "[]",
        "{}",
        "[1,a]",
        "{a:1}",
        "???",
        "''",
        "true",
        "1" + "0" * 30,
        "1,2",
        "range(3)",
    ),
    *(
        "${seed}",
        "${.seed}",
        "${oc.env:HOME}",
        "${oc.create:'{a: 1}'}",
        "{_target_: os.system}",
        "\\${x}",
        "${..}",
        "glob(*)",
    ),
    *("${hydra:x}", "${folder_name:a}", "${basename:${model}}", "[[[[]]]]", "'\\u0000'"),
]


def config_target() -> Callable[[bytes], None]:
    """Compose, check and type a few overrides, and a file of the user's."""
    register_schemas()
    names = [*setting_names(), *HYDRA, "model", "task", "method", "budget", "experiment", "scale"]
    folder = Path(tempfile.mkdtemp())

    def one(data: bytes) -> None:
        give = atheris.FuzzedDataProvider(data)
        overrides = ["output_dir=x"]
        for _ in range(give.ConsumeIntInRange(0, 3)):
            name = (
                give.PickValueInList(names)
                if give.ConsumeProbability() < 0.9
                else give.ConsumeUnicodeNoSurrogates(12)
            )
            value = (
                give.PickValueInList(VALUES)
                if give.ConsumeBool()
                else give.ConsumeUnicodeNoSurrogates(20)
            )
            overrides.append(f"{give.PickValueInList(['', '+', '++', '~'])}{name}={value}")
        text = give.ConsumeUnicodeNoSurrogates(60) if give.ConsumeBool() else "seed: 3"
        (folder / "own.yaml").write_text(f"defaults: [train, _self_]\n{text}\n", encoding="utf-8")
        try:
            with guarded(), hydra.initialize_config_dir(str(folder), version_base="1.3"):
                overrides.append(f"hydra.searchpath=[file://{CONF}]")
                composed = hydra.compose("own", overrides=overrides)
                to_config(composed)
        except (UserError, HydraException, OmegaConfBaseException, YAMLError):
            pass  # what the command turns into one message
        finally:
            GlobalHydra.instance().clear()

    return one


def adapter_target() -> Callable[[bytes], None]:
    """Damage one file of an honest adapter, and load what is left as predict does; the base is
    loaded once."""
    import peft
    from transformers import AutoModelForSequenceClassification

    from dynarank.pretrained import models

    hub, folder = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    write_model(hub / "models" / "org" / "m", tiny_roberta())
    base = AutoModelForSequenceClassification.from_pretrained(hub / "models/org/m")
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["query"], task_type="SEQ_CLS")
    peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(folder)
    task = {
        "name": "cola",
        "family": "text_classification",
        "select": "accuracy",
        "columns": {"text": "a"},
    }
    model = {"name": "m", "path": "org/m", "found": None}
    parts = {
        "task": task,
        "model": model,
        "method": {"name": "dora"},
        "budget": {"target": 2},
        "dem": {"eta": 0.1},
    }
    (folder / ORIGIN).write_text(json.dumps(parts))
    honest = {
        name: (folder / name).read_bytes()
        for name in (adapter_checks.CONFIG, adapter_checks.WEIGHTS, ORIGIN)
    }

    pretrained = models.Pretrained(base, None, ["classifier"], None)  # type: ignore[arg-type]
    models.load_tokenizer = lambda *given: None  # type: ignore[assignment,return-value]
    models.load_pretrained = lambda *given, **options: copy.deepcopy(pretrained)  # type: ignore[assignment]
    predictor.load_predictor(folder, HubConfig(str(hub)), device="cpu")

    def one(data: bytes) -> None:
        give = atheris.FuzzedDataProvider(data)
        name = give.PickValueInList(list(honest))
        (folder / name).write_bytes(damaged(give, honest[name], name.endswith(".json")))
        try:
            predictor.load_predictor(folder, HubConfig(str(hub)), device="cpu")
        except UserError:
            pass
        finally:
            (folder / name).write_bytes(honest[name])

    return one


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    targets = {
        "config": config_target,
        "adapter": adapter_target,
        "folder": folder_target,
        "report": report_target,
    }
    if len(sys.argv) < 2 or sys.argv[1] not in targets:
        sys.exit(__doc__)
    target = targets[sys.argv.pop(1)]()
    start = Path(
        tempfile.mkdtemp()
    )  # libFuzzer would grow inputs from one byte, which choose nothing
    for number in range(64):
        (start / str(number)).write_bytes(random.Random(number).randbytes(200))
    atheris.Setup(
        [
            *sys.argv,
            *(["-len_control=0", str(start)] if "-max_total_time" in str(sys.argv) else []),
        ],
        target,
    )
    atheris.Fuzz()
