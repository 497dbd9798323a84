"""Image classification: files of images, their processor, and a whole run on handwritten digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from prediction_runs import predict, records
from tiny import compose, configure

from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig, ModelConfig, Source
from dynarank.pretrained.models import load_pretrained
from dynarank.pretrained.processors import PROCESSORS
from dynarank.runs.predictor import load_predictor
from dynarank.runs.run import run
from dynarank.tasks import build_task
from dynarank.tasks.image_classification import ImageClassification

SIZE = 8
PROCESSOR = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5], "image_std": [0.5]}


def write_vit(folder: Path, channels: int = 1, processor: dict[str, Any] | None = None) -> Path:
    """A ViT of random weights, and its image processor."""
    from transformers import ViTConfig, ViTModel

    sizes = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128)
    config = ViTConfig(image_size=SIZE, patch_size=4, num_channels=channels, **sizes)
    torch.manual_seed(0)
    ViTModel(config).save_pretrained(folder)
    write_processor(folder, processor or PROCESSOR)
    return folder


def write_processor(folder: Path, settings: dict[str, Any]) -> None:
    from transformers import ViTImageProcessorPil

    ViTImageProcessorPil(**settings).save_pretrained(folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vit(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-learn's handwritten digits as files: train/CLASS/NUMBER.png, and some to validate."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    from PIL import Image as Picture

    root = tmp_path_factory.mktemp("digits")
    given = load_digits()
    for number, (pixels, label) in enumerate(zip(given.images, given.target, strict=True)):
        split = "validation" if number % 12 == 0 else "train"
        folder = root / split / f"digit {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Picture.fromarray((pixels * 15.9).astype("uint8")).save(folder / f"{number:04}.png")
    return root


@pytest.fixture(scope="module")
def digit_run(digits: Path, vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    files = [f"task.{split}_file={digits / split}" for split in ("train", "validation")]
    given = ["task=image_classification", f"model.path={vit}", *files]
    sizes = ["trainer.batch_size=64", "trainer.epochs=4", "optimizer.lr=0.01", "budget=r8"]
    run(configure(folder, folder, *given, *sizes, "budget.interval=5"))
    return folder


def test_a_tiny_vit_learns_digits(digit_run: Path) -> None:
    results = json.loads((digit_run / "metrics.json").read_text())
    assert results["metrics"]["accuracy"] > 0.8
    assert results["metrics"]["f1"] > 0.8
    assert results["components_kept"] == results["components_target"] == 8 * 6
    task = json.loads((digit_run / "adapter" / "dynarank.json").read_text())["task"]
    assert task["labels"] == [f"digit {number}" for number in range(10)]


def test_a_folder_and_a_table_are_predicted_and_scored(
    digit_run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynarank.commands.evaluate import main as evaluate

    scores = json.loads((digit_run / "metrics.json").read_text())["metrics"]
    images = digits / "validation"
    predict(digit_run, images, tmp_path / "out.csv", tmp_path, "--device", "cpu")
    assert f"accuracy: {scores['accuracy']:.4f}" in capsys.readouterr().out
    lines = records(tmp_path / "out.csv")
    right = np.mean([line["file"].startswith(line["label"] + "/") for line in lines])
    assert right == pytest.approx(scores["accuracy"])
    assert sum(float(lines[0][f"probability_digit {n}"]) for n in range(10)) == pytest.approx(1)

    table = images / "list.csv"
    table.write_text("image\n" + "".join(f"{line['file']}\n" for line in reversed(lines[:20])))
    predict(digit_run, table, tmp_path / "list.jsonl", tmp_path, "--device", "cpu", "--keep-all")
    again = records(tmp_path / "list.jsonl")
    assert [line["label"] for line in again] == [line["label"] for line in reversed(lines[:20])]
    table.unlink()

    capsys.readouterr()
    evaluate([str(digit_run), "--input", str(images), "--json", "--device", "cpu"])
    assert json.loads(capsys.readouterr().out)["metrics"] == pytest.approx(scores)


def test_peft_and_transformers_alone_predict_the_same(
    digit_run: Path, digits: Path, tmp_path: Path
) -> None:
    import peft
    from PIL import Image as Picture
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from dynarank.commands.export import main as export

    files = sorted((digits / "validation").rglob("*.png"))[::20]
    predictor = load_predictor(digit_run, HubConfig(), device="cpu")
    table = Dataset.from_dict({"image": [str(file) for file in files]})
    rows = predictor.task.check(table, "files", labelled=False)
    ours = [[*record.values()][1:] for record in predictor(rows)]
    export([str(digit_run), str(tmp_path / "merged"), "--merged"])
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    base = json.loads((digit_run / "adapter" / "adapter_config.json").read_text())
    plain = AutoModelForImageClassification.from_pretrained(
        base["base_model_name_or_path"], num_labels=10
    )
    adapted = peft.PeftModel.from_pretrained(plain, str(digit_run / "adapter"))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "merged", backend="pil")
    inputs = processor(images=[Picture.open(file) for file in files], return_tensors="pt")
    for model in (merged.eval(), adapted.eval()):
        with torch.no_grad():
            logits = model(**inputs).logits
        np.testing.assert_allclose(logits.softmax(-1), ours, atol=1e-5)


def test_a_narrow_base_reads_images(tmp_path: Path) -> None:
    from transformers import SwinConfig, SwinModel

    sizes = dict(embed_dim=8, depths=[1], num_heads=[1], window_size=2)
    SwinModel(SwinConfig(image_size=SIZE, patch_size=2, **sizes)).save_pretrained(tmp_path)
    write_processor(tmp_path, {"size": {"height": SIZE, "width": SIZE}})
    task, processor, model = load(tmp_path, dtype="bfloat16")
    rows = task.check(Dataset.from_dict({"image": pictures([(8, 8)])}), "rows", labelled=False)
    features = task.features(rows, processor, model, labelled=False)
    with torch.inference_mode():
        (row,) = task.predict(model, task.collator(processor)([features[0]]))
    assert row.sum() == pytest.approx(1)


def load(folder: Path, **settings: Any) -> tuple[ImageClassification, Any, Any]:
    given = ["output_dir=x", "task=image_classification", "task.labels=[a,b]"]
    task = build_task(to_config(compose(given)).task)
    assert isinstance(task, ImageClassification)
    config, source = (
        ModelConfig(name="tiny", path=str(folder), **settings),
        Source(str(folder), "tiny"),
    )
    processor = PROCESSORS[task.processor].load(config, source)
    return task, processor, load_pretrained(config, source, task, processor).model.eval()


def pictures(sizes: list[tuple[int, int]], mode: str = "RGB") -> list[Any]:
    from PIL import Image as Picture

    draw = np.random.default_rng(0)
    return [
        Picture.fromarray(draw.integers(0, 255, (height, width, 3), dtype="uint8")).convert(mode)
        for height, width in sizes
    ]


def test_an_image_is_predicted_as_if_it_were_alone_whatever_its_size_and_mode(
    tmp_path: Path,
) -> None:
    colours = {"size": {"height": SIZE, "width": SIZE}}
    task, processor, model = load(write_vit(tmp_path, channels=3, processor=colours))
    images = pictures([(5, 9), (30, 20), (8, 8)]) + pictures([(9, 9)], "L")
    images += pictures([(12, 8)], "RGBA") + pictures([(8, 8)], "P")
    rows = task.check(Dataset.from_dict({"image": images}), "rows", labelled=False)
    features = task.features(rows, processor, model, labelled=False)
    collate = task.collator(processor)
    with torch.inference_mode():
        together = task.predict(model, collate([features[index] for index in range(len(features))]))
        alone = [task.predict(model, collate([feature]))[0] for feature in features]
    for one, row in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, row, atol=1e-6)
    assert len({tuple(row.round(6)) for row in together}) == len(images)


def test_bytes_and_images_of_datasets_are_the_same_rows(vit: Path, tmp_path: Path) -> None:
    task, processor, model = load(vit)
    (picture,) = pictures([(8, 8)], "L")
    picture.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    Dataset.from_dict({"image": [content]}).to_parquet(tmp_path / "bytes.parquet")
    (tmp_path / "paths.jsonl").write_text('{"image": "a.png", "label": "a"}\n')
    sources = [
        Dataset.from_dict({"image": [picture]}),
        Dataset.from_dict({"image": [{"bytes": content, "path": None}]}).cast_column(
            "image", Image()
        ),
        *(
            task.read_file("--input", str(tmp_path / name))
            for name in ("bytes.parquet", "paths.jsonl")
        ),
    ]
    pixels = []
    for source in sources:
        rows = task.check(source, "rows", labelled=False)
        features = task.features(rows, processor, model, labelled=False)
        pixels.append(task.collator(processor)([features[0]])["pixel_values"])
    for part in pixels[1:]:
        torch.testing.assert_close(part, pixels[0], rtol=0, atol=0)


def test_broken_and_missing_images_are_named_by_row(vit: Path, tmp_path: Path) -> None:
    task, processor, model = load(vit)
    (picture,) = pictures([(64, 64)])
    picture.save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    cases = {
        "text.png": r"rows, row 1: .*text\.png is no image",
        "none.png": r"rows, row 1: .*No such file",
        None: "rows, row 1: image is missing",
    }
    for name, said in cases.items():
        second = None if name is None else str(tmp_path / name)
        table = Dataset.from_dict({"image": [str(tmp_path / "good.png"), second]})
        with pytest.raises(UserError, match=said):
            task.check(table, "rows", labelled=False)
    table = Dataset.from_dict({"image": [str(tmp_path / "cut.png")]})
    features = task.features(task.check(table, "rows", False), processor, model, labelled=False)
    with pytest.raises(UserError, match="row 0: its image is damaged"):
        task.collator(processor)([features[0]])
    with pytest.raises(UserError, match=r"'image' holds .*int64.*task\.columns\.image"):
        task.check(Dataset.from_dict({"image": [1, 2]}), "rows", labelled=False)


def test_folders_that_hold_no_classes_are_refused(vit: Path, tmp_path: Path) -> None:
    task, _, _ = load(vit)
    with pytest.raises(UserError, match="holds no images"):
        task.read_file("task.train_file", str(tmp_path))
    (tmp_path / "a").mkdir()
    (picture,) = pictures([(8, 8)])
    picture.save(tmp_path / "a" / "1.png")
    picture.save(tmp_path / "loose.png")
    with pytest.raises(UserError, match=r"loose\.png lies beside subfolders"):
        task.read_file("task.train_file", str(tmp_path))


MISFITS = [
    ({"size": {"height": 16, "width": 16}}, "the size .3, 16, 16., which the model does not take"),
    ({"size": {"shortest_edge": 8}}, "makes images of different sizes|cannot read an image"),
]


@pytest.mark.parametrize(("settings", "said"), MISFITS)
def test_a_processor_that_does_not_fit_its_model_is_refused(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        load(write_vit(tmp_path, channels=3, processor=settings))


def test_a_text_model_and_an_image_model_are_told_apart(vit: Path, hub_root: Path) -> None:
    with pytest.raises(UserError, match="fits image models, and roberta is an encoder"):
        run(configure(vit / "x", hub_root, "task=image_classification", "task.train_file=a.csv"))
    with pytest.raises(UserError, match=r"cola fits encoder and .* models, and vit is an image"):
        run(configure(vit / "y", hub_root, f"model.path={vit}"))
