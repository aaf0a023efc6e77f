# the settings
$env:WANDB_API_KEY = "not-a-key"
$models = "@models" # the three files
$rank = 16
$words = @("--lr_scheduler", "cosine", "--lr_warmup_steps", "100")

if ($args.Count) {
  $words += "--seed"
}
& accelerate launch --num_cpu_threads_per_process 1 "anima_train_network.py" `
  --pretrained_model_name_or_path="$models/anima_dit.safetensors" `
  --qwen3 "${models}/qwen_3_06b.safetensors" --vae $models/qwen_image_vae.safetensors `
  --train_data_dir '@data' --resolution 512,512 --train_batch_size=2 `
  --caption_extension .txt --shuffle_caption --keep_tokens 1 `
  --network_module networks.lora_anima --network_dim $rank --network_alpha 8 `
  --network_args "train_llm_adapter=True" "rank_dropout=0.1" --cache_latents `
  --network_args "exclude_patterns=['.*mlp.*']" @words `
  --optimizer_type adamw8bit --optimizer_args weight_decay=0.1 "betas=0.9,0.99" `
  --learning_rate 1e-4 --max_train_epochs 10 --save_every_n_epochs 2 `
  --noise_offset 0.05 --min_snr_gamma 5 --gradient_checkpointing --mixed_precision bf16 `
  --output_dir "$HOME/out" --training_comment "aoi `"one`"" --log_with tensorboard --reg_data_dir "@data" --wandb_api_key $env:WANDB_API_KEY --save_state --save_precision bf16 | Tee-Object train.log
