"""A stand-in for DataComp's scale_configs.py: a table of scales by name."""

SCALE_CONFIGS = {
    "small": {
        "batch_size": 4096,
        "learning_rate": 5e-4,
        "train_num_samples": 12_800_000,
        "warmup": 500,
        "model": "ViT-B-32",
        "beta2": None,
    },
}
