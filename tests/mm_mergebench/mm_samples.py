"""A tiny random LLaVA, adapters for it in the released layout, and data in the exact layout it is published in."""

import json
from pathlib import Path
from typing import Any

import torch
from mm_mergebench.tasks import TASKS, Task
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("IconQA", "flickr30k", "REC", "ScienceQA", "OCRVQA", "ImageNet", "VizWiz", "VQAv2")
TEXT, WIDE, VISION, LAYERS = 32, 48, 16, 2
LINEARS = {
    "self_attn.q_proj": (TEXT, TEXT),
    "self_attn.k_proj": (TEXT, TEXT),
    "self_attn.v_proj": (TEXT, TEXT),
    "self_attn.o_proj": (TEXT, TEXT),
    "mlp.gate_proj": (WIDE, TEXT),
    "mlp.up_proj": (WIDE, TEXT),
    "mlp.down_proj": (TEXT, WIDE),
}


def write_base(place: Path, seed: int = 0) -> Path:
    """LLaVA in transformers' layout: two layers each, 4 tokens an image, a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>", "<image>", "<pad>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **names)
    wrapped.save_pretrained(place)
    vision = CLIPVisionConfig(
        hidden_size=VISION, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=TEXT,
        intermediate_size=WIDE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        vocab_size=len(special) + len(letters),
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=4,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=3))
    model.generation_config.eos_token_id = 1
    model.save_pretrained(place)
    settings = {
        "crop_size": {"height": 28, "width": 28},
        "size": {"shortest_edge": 28},
        "image_processor_type": "CLIPImageProcessor",
    }
    settings |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "processor_class": "LlavaProcessor"}
    (place / "preprocessor_config.json").write_text(json.dumps(settings))
    return place


def write_adapters(place: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Folders by the released names, as LLaVA's trainer leaves them: rank 4, bfloat16, the projector beside them."""
    for seed, name in enumerate(names):
        write_adapter(place / f"LLaVA_7B_lora_r16_{name}", seed)
    return place


def write_adapter(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (0.3 * torch.randn(shape, generator=draw)).to(torch.bfloat16)

    factors: dict[str, torch.Tensor] = {}
    for layer in range(LAYERS):
        for name, (d_out, d_in) in LINEARS.items():
            site = f"base_model.model.model.layers.{layer}.{name}"
            factors |= {f"{site}.lora_A.weight": random(4, d_in), f"{site}.lora_B.weight": random(d_out, 4)}
    torch.save(factors, folder / "adapter_model.bin")
    projector = {
        "0.weight": random(TEXT, VISION),
        "0.bias": random(TEXT),
        "2.weight": random(TEXT, TEXT),
        "2.bias": random(TEXT),
    }
    named = {f"base_model.model.model.mm_projector.{key}": value for key, value in projector.items()}
    torch.save(named, folder / "non_lora_trainables.bin")
    settings: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none"}
    settings |= {"target_modules": sorted(name.rpartition(".")[2] for name in LINEARS), "lora_dropout": 0.05}
    settings |= {"base_model_name_or_path": "liuhaotian/llava-v1.5-7b", "inference_mode": True, "fan_in_fan_out": False}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    config = {"model_type": "llava_llama", "hidden_size": TEXT, "num_hidden_layers": LAYERS, "mm_hidden_size": VISION}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


ITEMS: dict[str, list[dict[str, Any]]] = {
    "ScienceQA": [
        {"question_id": "4", "image": "./ScienceQA/test/4/image.png", "text": "<image>\nWhich?\nA. one\nB. two", "answer": "B"},
        {"question_id": "11", "text": "Without an image?\nA. yes\nB. no", "answer": "A"},
        {"question_id": "12", "text": "Again?\nA. yes\nB. no\nC. so", "answer": "C"},
    ],
    "ImageNet": [
        {
            "question_id": 0,
            "image": "./ImageNet/val/1.jpg",
            "text": "What is it?\nAnswer in a word.",
            "answer": "Golden retriever",
        },
        {"question_id": 1, "image": "./ImageNet/val/2.jpg", "text": "What is it?\nAnswer in a word.", "answer": "Crane2"},
    ],
    "VQAv2": [
        {"question_id": 262148000, "image": "./COCO2014/val/1.jpg", "text": "Where?\nIn a word.", "answer": "down"},
        {"question_id": 262148001, "image": "./COCO2014/val/2.jpg", "text": "Who?\nIn a word.", "answer": "2"},
    ],
    "REC": [
        {
            "question_id": "r1",
            "image": "./COCO2014/train/1.jpg",
            "text": "Please provide the box: left cup.",
            "answer_bbox": "[0.1, 0.2, 0.5, 0.6]",
            "size": [40, 20],
        },
        {
            "question_id": "r2",
            "image": "./COCO2014/train/2.jpg",
            "text": "Please provide the box: dog.",
            "answer_bbox": "[0.0, 0.0, 1.0, 0.9]",
            "size": [20, 40],
        },
    ],
    "OCRVQA": [{"question_id": "o1", "image": "./OCRVQA/1.jpg", "text": "Title?\nIn a word.", "answer": "The Sea"}],
    "VizWiz": [
        {"question_id": "v1", "image": "./VizWiz/val/1.jpg", "text": "What is happening?\nGenerate a brief caption."},
        {"question_id": "v2", "image": "./VizWiz/val/2.jpg", "text": "What is happening?\nGenerate a brief caption."},
    ],
    "Flickr30k": [
        {"question_id": "f1", "image": "./Flickr30k/val/1.jpg", "text": "What is happening?\nGenerate a brief caption."},
        {"question_id": "f2", "image": "./Flickr30k/val/2.jpg", "text": "What is happening?\nGenerate a brief caption."},
    ],
    "IconQA": [{"question_id": "i1", "image": "./IconQA/1.png", "text": "How many?\nIn a word.", "answer": "3"}],
    "AOKVQA": [
        {"question_id": "a1", "image": "./COCO2014/val/3.jpg", "text": "Why?\nA. wet\nB. dry\nC. old\nD. new", "answer": "A"}
    ],
    "ImageNet-R": [{"question_id": "n1", "image": "./ImageNet-R/1.jpg", "text": "What is the object?", "answer": "goldfish"}],
    "Screen2words": [
        {"question_id": "s1", "image": "./Screen2words/1.jpg", "text": "Describe the screen."},
        {"question_id": "s2", "image": "./Screen2words/2.jpg", "text": "Describe the screen."},
    ],
    "TabMWP": [{"question_id": "t1", "image": "./TabMWP/1.png", "text": "How much?\nIn a word.", "answer": "1,200"}],
}


def write_data(place: Path, published: bool = False) -> Path:
    """instructions/ and datasets/ as the released scripts name them, or the folders of the published data set."""
    for number, task in enumerate(TASKS):
        if published:
            folder = place / ("Seen_data" if task.seen else "Unseen_data") / task.folders[min(1, len(task.folders) - 1)]
        else:
            folder = place / "instructions" / task.folders[0]
        folder.mkdir(parents=True)
        items = ITEMS[task.name]
        (folder / task.questions).write_text(json.dumps(items))
        for index, item in enumerate(items):
            if "image" in item:
                write_image(place / ("images" if published else "datasets") / item["image"], 10 * number + index)
        if task.references:
            (folder / task.references).write_text(json.dumps(coco(task, items)))
    return place


def coco(task: Task, items: list[dict[str, Any]]) -> dict[str, Any]:
    """References as COCO has them; images are numbered from 1 in the order of the questions."""
    images = [{"id": index, "file_name": item["image"]} for index, item in enumerate(items, 1)]
    captions = [f"A {word} in picture {image['id']} of {task.name}" for image in images for word in ("dog", "small dog")]
    annotations = [{"id": i, "image_id": 1 + i // 2, "caption": caption} for i, caption in enumerate(captions)]
    return {"info": {}, "licenses": [], "type": "captions", "images": images, "annotations": annotations}


def write_image(path: Path, seed: int) -> None:
    """A wide or a tall picture of noise; a PNG has an alpha channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (40, 20) if seed % 2 else (20, 44)
    channels = 4 if path.suffix == ".png" else 3
    values = torch.randint(
        0, 256, (size[1], size[0], channels), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    Image.fromarray(values.numpy()).save(path)
