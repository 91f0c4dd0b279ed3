"""A configuration of `lit-tr iterate` that takes seconds, and rewards for it."""

import math
import time

import yaml

SYNTHETIC = "lit_tr.embedded.SyntheticPairs"


def letters(prompt, response):
    """A reward with few ties."""
    return float(sum(map(ord, response)) % 97)


def slow(prompt, response):
    time.sleep(0.004)
    return letters(prompt, response)


def silent(prompt, response):
    return math.nan


def dies(prompt, response):
    raise OSError("no route to the judge")


def content(policy, reward="letters", **more):
    """Return the options as plain data."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "limit_val_batches": 0}
    saved = {"save_last": True, "every_n_train_steps": 1, "save_top_k": 1}
    checkpoints = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saved}
    fit = {
        "seed_everything": 1,
        "trainer": {"max_steps": 4, "log_every_n_steps": 1, "callbacks": [checkpoints], **quiet},
        "model": {
            "policy": {"path": policy},
            "reference": "lit_tr.reference.FrozenReference",
            "loss": {"class_path": "lit_tr.losses.DPO", "init_args": {"beta": 0.1}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        },
        "data": {"batch_size": 4, "max_length": 128},
    }
    return {
        "rounds": 1,
        "prompts_per_round": 6,
        "prompts": {"class_path": SYNTHETIC, "init_args": {"size": 24, "seed": 1}},
        "held_out": {"class_path": SYNTHETIC, "init_args": {"size": 6, "held_out": True}},
        "held_out_prompts": 5,
        "sampling": {"samples": 3, "max_new_tokens": 8},
        "reward": f"tests.commands.rounds.{reward}",
        "pairing": {"class_path": "lit_tr.iteration.AllPairs"},
        "batch_tokens": 200,
        "fit": fit,
        **more,
    }


def write(path, policy, reward="letters", **more):
    """Write the options to a file; return its path."""
    path.write_text(yaml.safe_dump(content(policy, reward, **more)))
    return str(path)
