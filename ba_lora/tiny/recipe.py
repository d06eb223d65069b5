"""The recipe of the embedded model: its tokenizer, its training on generated problems and stories, and its report.

For problems, the loss covers the response and its end token; for stories, every token.
"""

import math
import random
import time

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..data.templates import TEMPLATES
from ..data.tinymath import final_number, generate, plain_text
from ..errors import UserError
from ..files import atomic_folder, write_json
from ..folders import checksums
from ..folders.kinds import WEIGHTS
from ..folders.ownership import claimed

VOCABULARY = 768
STORY_SHARE = 0.2  # share of the training sequences; 30% of the tokens that carry a loss
WINDOW = 16  # number of batches sorted by length together
HELD_OUT = 300  # problems or stories per number in the report
TEMPLATE = TEMPLATES["plain"]
# A token is a digit, or a word with the space before it, or a run of signs with the spaces around it (" + ", ". ").
PIECES = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+ ?|\s+"


def train_tokenizer(texts, vocabulary=VOCABULARY):
    """A byte-level BPE with `vocabulary` tokens, trained on an iterable of str; encoding adds no special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_model(tokenizer, seed):
    """A new LlamaForCausalLM with 2.1M float32 parameters; the head is not tied to the embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        initializer_range=0.06,  # about 1/sqrt(hidden_size); the usual 0.02 is meant for wider models
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode_problem(tokenizer, problem):
    """(ids, labels): prompt and response encoded separately, then the end token; the prompt has label -100."""
    prompt = tokenizer.encode(TEMPLATE.render(problem["question"]))
    response = tokenizer.encode(TEMPLATE.separator + problem["answer"]) + [tokenizer.eos_token_id]
    return prompt + response, [-100] * len(prompt) + response


def encode_story(tokenizer, story):
    """(ids, labels) of plain text and its end token."""
    ids = tokenizer.encode(story) + [tokenizer.eos_token_id]
    return ids, list(ids)


def cut_batches(samples, batch_size, seed):
    """Shuffled batches of samples of similar length, sorted within windows to keep padding low."""
    chance = random.Random(seed)
    chance.shuffle(samples)
    for start in range(0, len(samples), batch_size * WINDOW):
        window = sorted(samples[start : start + batch_size * WINDOW], key=lambda sample: len(sample[0]))
        batches = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        chance.shuffle(batches)
        yield from batches


def pad(samples, fill):
    """Samples → input_ids, labels, attention_mask, each (batch, longest), padded on the right."""
    longest = max(len(ids) for ids, _ in samples)
    gaps = [longest - len(ids) for ids, _ in samples]
    ids = torch.tensor([ids + [fill] * gap for (ids, _), gap in zip(samples, gaps, strict=True)])
    labels = torch.tensor([labels + [-100] * gap for (_, labels), gap in zip(samples, gaps, strict=True)])
    mask = torch.tensor([[1] * (longest - gap) + [0] * gap for gap in gaps])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def train(model, batches, steps, lr, fill):
    """AdamW; warm-up over 3% of the steps, then a cosine to 2% of `lr`; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": [p for p in model.parameters() if p.dim() == 1]}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    warm_up = max(1, steps * 3 // 100)
    shape = lambda step: min((step + 1) / warm_up, 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    model.train()
    progress = tqdm(batches, total=steps, desc="pre-training", mininterval=5)
    for samples in progress:
        loss = model(**pad(samples, fill)).loss
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} after {progress.n} steps: lower --learning_rate (now {lr})")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


@torch.no_grad()
def accuracy(model, tokenizer, problems, batch_size=100):
    """Fraction of problems whose greedy answer has the right number after "The answer is:"."""
    model.eval()
    prompts = [tokenizer.encode(TEMPLATE.render(problem["question"])) for problem in problems]
    right = 0
    for batch in cut_in_order(sorted(zip(prompts, problems, strict=True), key=lambda pair: len(pair[0])), batch_size):
        longest = max(len(prompt) for prompt, _ in batch)
        ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt, _ in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in batch])
        output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=64, do_sample=False)
        texts = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
        right += sum(final_number(text) == final_number(p["answer"]) for text, (_, p) in zip(texts, batch, strict=True))
    return right / len(problems)


@torch.no_grad()
def story_loss(model, tokenizer, stories, batch_size=100):
    """Mean cross-entropy of plain text, in nats per token. The end token counts; the first token does not, as nothing
    precedes it."""
    model.eval()
    total = tokens = 0
    for batch in cut_in_order([encode_story(tokenizer, story) for story in stories], batch_size):
        count = sum(len(ids) - 1 for ids, _ in batch)
        total += model(**pad(batch, tokenizer.pad_token_id)).loss.item() * count
        tokens += count
    return total / tokens


def cut_in_order(items, size):
    """Consecutive lists of at most `size` items."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def pretrain(output, steps, batch_size, lr, seed, held_out=HELD_OUT):
    """Make tokenizer and model, train, measure, and fill the folder `output`. Returns the content of recipe.json.

    Raises UserError if `output` holds anything but an earlier model of this command, or if another process is filling it.
    """
    with claimed(output, "pre-trained model"):
        return _pretrain(output, steps, batch_size, lr, seed, held_out)


def _pretrain(output, steps, batch_size, lr, seed, held_out):
    start = time.perf_counter()
    stories = plain_text("pretrain", round(steps * batch_size * STORY_SHARE), seed)
    problems = generate("pretrain", steps * batch_size - len(stories), seed)
    texts = stories[:20_000] + [TEMPLATE.render(p["question"]) for p in problems[:20_000]]
    texts += [TEMPLATE.separator + p["answer"] for p in problems[:20_000]]
    tokenizer = train_tokenizer(texts)
    model = build_model(tokenizer, seed)
    samples = [encode_story(tokenizer, s) for s in stories] + [encode_problem(tokenizer, p) for p in problems]
    train(model, cut_batches(samples, batch_size, seed), steps, lr, tokenizer.pad_token_id)
    seconds = time.perf_counter() - start
    recipe = {
        "command": "python -m ba_lora.tiny.pretrain --output_dir DIR "
        f"--steps {steps} --batch_size {batch_size} --learning_rate {lr} --seed {seed}",
        "parameters": model.num_parameters(),
        "problems": len(problems),
        "stories": len(stories),
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "held_out": held_out,
        "accuracy": {
            s: accuracy(model, tokenizer, generate(s, held_out)) for s in ("pretrain-test", "test", "shifted")
        },
        "story_loss_nats_per_token": story_loss(model, tokenizer, plain_text("pretrain-test", held_out)),
    }
    with atomic_folder(output, WEIGHTS) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "recipe.json", recipe)
        checksums.write(folder)
    return recipe
