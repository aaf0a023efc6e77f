"""A record of a long run with all that a page can show; names and texts may be hostile."""

import base64
import io
import math
import random

from PIL import Image, ImageDraw

from library.reporting.record import Outline, RunRecord, Strengths
from library.reporting.thumbnails import Picture
from library.watching.step_logs import StepSamples

HOSTILE = "</script><img src=x onerror=\"window.pwned=1\">'\"><svg onload=window.pwned=2>"
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "cross_attn.q_proj", "mlp.layer1", "mlp.layer2")


def drawn(step: int, number: int) -> str:
    """A little picture that gets clearer with the steps, as a data: address."""
    noise = random.Random(step + number)
    picture = Image.effect_noise((192, 192), max(2, 90 - step / 12)).convert("RGB")
    colour = [(220, 90, 60), (60, 120, 220), (70, 170, 90)][number % 3]
    edge = 40 + noise.randint(-8, 8)
    ImageDraw.Draw(picture).ellipse((edge, edge, 192 - edge, 192 - edge), fill=colour)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def record_of(text: str = "", *, steps: int = 1000, total: int = 1600, blocks: int = 28) -> RunRecord:
    """text: stands in every name and text that others give."""
    record, draw = RunRecord(), random.Random(1)
    options = [
        ("learning_rate", "1e-4", "2e-06", True), ("network_dim", "16", "", True),
        ("training_comment", text, "", True), ("seed", "7", "", True),
        ("output_dir", "~/lora/sylvie", "", True), *((f"option_{n}", "false", "false", False) for n in range(60)),
    ]  # fmt: skip
    facts = (("device", f"1 x cpu{text}"), ("precision", "bf16"), ("optimizer", "AdamW(fused=True)"))
    record.begin(Outline(f"sylvie{text}", 1.79e9, 0, total, 100, math.ceil(total / 100), facts, options))
    for step in range(1, steps + 1):
        loss = 0.12 + 0.08 * math.exp(-step / 300) + draw.gauss(0, 0.02)
        values = {
            "loss/current": math.nan if step == 400 else loss, "loss/average": 0.12 + 0.08 * math.exp(-step / 320),
            f"lr/unet{text}": 1e-4 * min(1, step / 100), "norm/grad": 0.3 + draw.random() / 5,
            "gpu/mem_allocated_mb": 9300.0, "gpu/mem_peak_allocated_mb": 10900 + 200 * draw.random(),
            "host/mem_rss_mb": 6100.0, "alert/nonfinite_loss": float(step == 400),
        }  # fmt: skip
        record.add_values(step, values)
        if step % 4 == 0:
            sigma = draw.random()
            record.add_samples(step, StepSamples("a", (loss * (0.5 + sigma),), (sigma,)))
        if step % 20 == 0:
            record.add_values(step, {"time/step": 1.1 + draw.random() / 20})
        if step % 200 == 0:
            held = 0.14 + 0.05 * math.exp(-step / 400)
            quarters = ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")
            record.add_values(step, {
                "loss/validation/average": held,
                **{f"loss/validation/sigma_{q}": held * (0.6 + n / 4) for n, q in enumerate(quarters)},
            })  # fmt: skip
            record.add_values(step, {f"eval/auc{text}": 0.5 + step / 8000, "drift/without": step / 2e4, "eval/loss/base": 0.2})
            for number in range(2):
                prompt = f"1girl, sylvie, red hair, standing in a field {text}"
                record.add_picture(Picture(step, number, prompt, 42, f"sample/{step}{text}.png", drawn(step, number)))
    record.places = [(f"blocks.{block}", kind) for block in range(blocks) for kind in KINDS]
    record.places += [(f"llm_adapter{text}.blocks.{block}", kind) for block in range(6) for kind in KINDS[:4]]
    for step in range(40, steps + 1, 40):
        norms = [step / 1000 * (1 + block / 14) * (1 + n / 5) for block in range(blocks) for n in range(len(KINDS))]
        norms += [step / 4000 for _ in range(24)]
        record.add_strengths(Strengths(step, norms))
    record.step, record.status = steps, "running" if steps < total else "done"
    record.add_note("WARNING", f"step 400: the loss is not finite; no update was made from it. Pictures: 0.0/{text}a.png.")
    record.add_table("buckets", ("dataset", "width", "height", "pictures", "with repeats", "batches"), [(0, 1024, 1024, 12, 120, 60), (0, 832, 1216, 25, 250, 125), (0, 1216, 832, 3, 30, 15)])
    ledger = [(f"{text}{n:02d}.png", "0.0", 25, 0.8 + n / 30, 1.2, 1.1, 1.0, 0.9, -0.2, "memorised" if n == 2 else "") for n in range(14)]
    columns = ("picture", "dataset", "samples", "loss", "loss_1_of_4", "loss_2_of_4", "loss_3_of_4", "loss_4_of_4", "change", "verdict")
    record.add_table("ledger", columns, ledger)
    record.add_saved(500, f"sylvie-step00000500{text}.safetensors")
    for stage, seconds in {"check": 3.1, "cache_inputs": 95.0, "load_models": 12.5, "run_epochs": 1.1 * steps, "validate": 60.0, "draw": 170.0, "save": 9.0}.items():
        record.times.add(stage, seconds)
    if record.status == "done":
        words = f"done: {steps} steps, /out/sylvie{text}.safetensors"
        record.end("done", f"{words}\nKeep sylvie-step00000500.safetensors: its loss is the lowest.")
    return record
