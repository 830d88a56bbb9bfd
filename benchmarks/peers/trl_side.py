"""TRL's side of benchmarks/peers.py, run in an environment of its own: the same token ids, LoRA weights and rates, in TRL's own trainers.

    python trl_side.py JOB.json     # prints one JSON object: seconds and loss of every step, peak memory

Rows are fed as token ids, so that no template and no Arrow struct changes what is trained. Where TRL always tokenizes by itself (DPO), its
preparation of the rows is left out; its collator, model pass, loss and optimizer stay as they are.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig, TrainerCallback


class Clock(TrainerCallback):
    """Seconds and loss of every optimizer step."""

    def __init__(self):
        self.seconds, self.losses, self.began = [], [], 0.0

    def on_step_begin(self, *_args, **_kwargs):
        """A step's forward begins."""
        self.began = time.perf_counter()

    def on_step_end(self, *_args, **_kwargs):
        """The optimizer has stepped."""
        self.seconds.append(time.perf_counter() - self.began)

    def on_log(self, _args, _state, _control, logs=None, **_kwargs):
        """A step's figures."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


class FedDPOTrainer(trl.DPOTrainer):
    """Rows come as prompt_ids, chosen_ids and rejected_ids already."""

    def _prepare_dataset(self, dataset, *_args, **_kwargs):
        return dataset


def main() -> None:
    """Train a few steps and print what they took."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    dtype = torch.bfloat16 if job["bf16"] else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    common = {
        "output_dir": job["scratch"], "per_device_train_batch_size": job["batch"] // job["parts"],
        "gradient_accumulation_steps": job["parts"], "max_steps": job["steps"], "learning_rate": job["rate"],
        "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "logging_steps": 1, "train_sampling_strategy": "sequential",
        "save_strategy": "no", "report_to": "none", "use_cpu": job["device"] == "cpu", "bf16": job["bf16"],
        "gradient_checkpointing": job["recompute"],
        "max_length": job["max_length"], "seed": 0, "disable_tqdm": True,
    }  # fmt: skip
    data = Dataset.from_list(job["rows"])
    clock = Clock()
    shared = {"train_dataset": data, "processing_class": tokenizer, "callbacks": [clock]}
    loading = {"dtype": dtype}
    if job["quantization"] == "nf4":
        loading["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    if job["device"] != "cpu":
        loading["device_map"] = {"": 0}
    if job["recipe"] == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(job["base"], num_labels=1, **loading)
        model.config.pad_token_id = tokenizer.pad_token_id
        model.score.weight.data.copy_(torch.tensor(job["head"])[None])
    else:
        model = AutoModelForCausalLM.from_pretrained(job["base"], **loading)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # on CPUs: a kernel that has no backward, and its gradients are wrong
    adapted = with_lora(model, Path(job["adapter"]), causal=job["recipe"] != "reward")
    if job["recipe"] == "reward":
        adapted.base_model.model.score.weight.requires_grad_(True)
        trainer = trl.RewardTrainer(model=adapted, args=trl.RewardConfig(**common, center_rewards_coefficient=None), **shared)
    elif job["recipe"] == "dpo":
        arguments = trl.DPOConfig(**common, beta=job["beta"], precompute_ref_log_probs=job["tuned"], remove_unused_columns=False)
        trainer = FedDPOTrainer(model=adapted, args=arguments, **shared)
    else:
        trainer = trl.SFTTrainer(model=adapted, args=trl.SFTConfig(**common), **shared)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # On a quantized base TRL rounds the adapter to bf16, where its weights lose much of an update of this size.
            parameter.data = parameter.data.float()
    trainer.train()
    on_cpu = job["device"] == "cpu"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 if on_cpu else torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps({"seconds": clock.seconds, "losses": clock.losses[: job["steps"]], "peak_gib": peak, "version": trl.__version__}))


def with_lora(model, folder, *, causal):
    """The adapter of ours on this model, trainable, in fp32."""
    if causal:
        return PeftModel.from_pretrained(model, folder, is_trainable=True)
    config = LoraConfig.from_pretrained(folder)
    config.task_type, config.inference_mode = None, False
    adapted = get_peft_model(model, config)
    set_peft_model_state_dict(adapted, load_file(folder / "adapter_model.safetensors"))
    return adapted


if __name__ == "__main__":
    main()
