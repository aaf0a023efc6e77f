#!/usr/bin/env bash
accelerate launch --num_processes 2 ./anima_train.py \
  --pretrained_model_name_or_path=@models/anima_dit.safetensors --qwen3 @models/qwen_3_06b.safetensors \
  --vae @models/qwen_image_vae.safetensors --train_data_dir @data --resolution 512,512 \
  --learning_rate 1e-5 --llm_adapter_lr 0 --self_attn_lr 2e-5 --cross_attn_lr 3e-5 --mlp_lr 4e-5 --mod_lr 0 --optimizer_type Adafactor \
  --optimizer_args relative_step=False --max_grad_norm 0 --fused_backward_pass --mixed_precision bf16 \
  --max_train_epochs 10 --network_dim 16 --output_dir "@/out" --huggingface_repo_id user/aoi --async_upload
