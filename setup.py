"""The packages of a wheel; everything else is in pyproject.toml.

The package takes configs/ along as ba_lora/configs, because --dry_run, --deepspeed and --config read it; in a checkout they read
configs/ itself (`ba_lora.files.PROJECT`). eval/, the experiments and their configs need the checkout and stay out.
"""

from setuptools import find_namespace_packages, find_packages, setup

CODE = find_packages(include=["ba_lora", "ba_lora.*"], exclude=["ba_lora.experiments*"])
CONFIGS = find_namespace_packages("configs", include=["models", "deepspeed", "nlg*", "nlu*"])

setup(
    packages=[*CODE, "ba_lora.configs", *(f"ba_lora.configs.{name}" for name in CONFIGS)],
    package_dir={"ba_lora.configs": "configs"},
    package_data={
        "ba_lora": ["py.typed", "*.pyi", "*.mplstyle"],
        "ba_lora.tiny": ["checksums.json", "model/*"],
        "ba_lora.configs": ["devices.yaml"],
        **{f"ba_lora.configs.{name}": ["*.yaml", "*.json"] for name in CONFIGS},
    },
    include_package_data=False,
)
