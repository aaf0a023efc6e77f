"""The sentence of each of Anima's flags in Chinese, beside those of library/settings/flags_in_chinese.py."""

from __future__ import annotations

from library.settings import flags_in_chinese as shared

TITLES = {**shared.TITLES, "anima": "Anima"}

SENTENCES = {
    **shared.SENTENCES,
    "anima_transformer": "DiT；同 pretrained_model_name_or_path",
    "qwen": "Qwen3-0.6B：.safetensors 文件或文件夹",
    "llm_adapter_path": "LLM adapter 单独成一个文件时写",
    "qwen_tokenizer_dir": "Qwen 分词器；不写为模型文件旁的 qwen_tokenizer/",
    "t5_tokenizer_dir": "T5 分词器；不写为 DiT 旁的 t5_tokenizer/",
    "anima_seq_len": "两种 token 的最大长度；不写不限",
    "qwen3_max_token_length": "Qwen token 的最大长度；不写不限",
    "t5_max_token_length": "T5 token 的最大长度；不写不限",
    "empty_caption": "空标注：按 ComfyUI 编码，或全零",
    "anima_attention_backend": "注意力；同 attn_mode",
    "attn_mode": "注意力，sd-scripts 的写法；都不写为 auto：开始时计时，用这里最快的；CPU 上与 deterministic 时用 torch",
    "xformers": "用 xformers 的注意力",
    "xfomers": "xformers 的旧误拼",
    "sdpa": "用 torch 的注意力",
    "fused_kernels": "归一化与旋转、门控与其后的归一化各合成一个 Triton 算子：能用就用，或随状态（auto）",
    "split_attn": "注意力一张图一张图地算",
    "text_padding": "文本补到 512 的零：作为行参与注意力，或只计入 softmax（fold，计算少，只差舍入）；auto：随状态，否则用更快的（显卡上开始时计时；cuda_graphs 时为 rows）",
    "anima_timestep_sampling": "同 timestep_sampling；logit_normal 就是 sigmoid",
    "anima_sigmoid_scale": "同 sigmoid_scale",
    "anima_flow_shift": "同 discrete_flow_shift，并用 shift 抽取",
    "anima_noise_offset": "同 noise_offset",
    "train_norm": "也训练归一化层的权重",
    "norm_export": "文件里训练过的归一化层：diff 写入，omit_trained 明知而丢弃，omit 用于不训练它们的训练",
    "llm_adapter_lr": "LLM adapter 的学习率；0 冻结",
    "self_attn_lr": "自注意力的学习率；0 冻结",
    "cross_attn_lr": "交叉注意力的学习率；0 冻结",
    "mlp_lr": "前馈层的学习率；0 冻结",
    "mod_lr": "调制层的学习率；0 冻结",
    "vae_disable_cache": "不用 VAE 的时间缓存",
    "qwen_image_vae_2d": "用二维卷积的 VAE",
    "qwen_tokenizer_repo_id": "缺少的 Qwen 分词器从哪里下载：仓库名或网址",
    "auto_download_t5_tokenizer": "下载缺少的分词器，T5 与 Qwen 的",
    "t5_tokenizer_repo_id": "缺少的 T5 分词器从哪里下载",
    "t5_tokenizer_subfolder": "它在那里的文件夹，先于根目录",
    "t5_tokenizer_modelscope_fallback": "其次试 ModelScope",
    "t5_tokenizer_modelscope_repo_id": "T5 在 ModelScope 的仓库",
    "t5_tokenizer_modelscope_revision": "它的版本",
    "t5_tokenizer_modelscope_subfolder": "在那里的文件夹",
    "t5_tokenizer_validate_strict": "拒绝错误的分词器",
    "download_timeout": "下载一个分词器的秒数上限",
    "anima_resume_snapshot_strict": "状态与继续的训练有任何不同都报错",
}

REASONS = {
    **shared.REASONS,
    "attn_mode": "只用于画图，不能训练；写 auto 或 torch",
    "split_attn": "一批的形状相同，没有遮罩",
    "vae_disable_cache": "单张图片从不用这个缓存",
    "qwen_image_vae_2d": "这里总是这样编码图片",
    "t5_tokenizer_validate_strict": "不可能正确的分词器总会被拒绝",
}
